"""Work on the device as something that may fail, and what came of it as plain data. No torch.

An error that is kept keeps the frames it went through, and with them every tensor of the work that
failed: what is tried next would find that much less memory. So the errors end here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fluxserve.core.errors import EngineError, FluxserveError, OutOfMemory
from fluxserve.engines.local.run import (
    Decoded,
    DeviceLost,
    Encoded,
    Glimpsed,
    H,
    Lane,
    LaneFailed,
    LaneFull,
    NoRoom,
    Outcome,
    Run,
    Spoiled,
    Worker,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a step did not happen; it holds nothing of the step."""

    is_full: bool = False  # the device ran out of memory
    spoiled: tuple[int, ...] = ()  # places of the samples that came to values that are no numbers
    trace: str = ""  # for the log, where the reason is not known


def advance(worker: Worker[H], samples: Sequence[H]) -> Failure | None:
    """One step for all of the samples, or none and a Failure. Raises DeviceLost."""
    try:
        worker.advance(samples)
    except NoRoom:
        return Failure(is_full=True)
    except Spoiled as spoiled:
        return Failure(spoiled=spoiled.places)
    except DeviceLost:
        raise
    except Exception:
        return Failure(trace=traceback.format_exc())
    return None


def outcome(
    lane: Lane,
    run: Run[H],
    work: Callable[[], Encoded[H] | Decoded[H] | Glimpsed[H]],
    *,
    is_last: bool = False,
) -> Outcome[H]:
    """What comes of a lane's work, good or bad; without room it is tried again unless `is_last`."""
    try:
        return work()
    except NoRoom as error:
        if is_last:
            return LaneFailed(run, error)
    except Exception as error:
        return LaneFailed(run, error)
    return LaneFull(run, lane, work)


def told(error: Exception) -> FluxserveError:
    """What is said of an error that ends a request."""
    match error:
        case FluxserveError():
            return error
        case NoRoom():
            return OutOfMemory("the device has too little memory for this request")
        case Spoiled():
            return EngineError("the picture came to values that are no numbers")
        case _:
            return EngineError("the engine failed on this request")
