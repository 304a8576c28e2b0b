"""Keeps a prediction ours while its inputs are fetched, and uploaded to the provider."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from fluxserve.core.errors import Conflict, NotFound, TimedOut
from fluxserve.core.prediction import Prediction
from fluxserve.engines.upstream.base import OWNER, Desk

log = logging.getLogger(__name__)

READY_S = 600.0  # inputs that take longer end their prediction
BEATS = 4  # in the time of one lease

T = TypeVar("T")


async def while_ours(desk: Desk, prediction: Prediction, work: Coroutine[Any, Any, T]) -> T:
    """`work`, while the lease is renewed. Conflict once it is lost; TimedOut after READY_S."""
    task = asyncio.create_task(work)
    heart = asyncio.create_task(_beat(desk, prediction))
    try:
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait((task, heart), timeout=READY_S, return_when=first)
        if task.done():
            return task.result()
        if heart.done():
            heart.result()
        text = f"the input pictures were not ready to be sent within {READY_S:g} s"
        raise TimedOut(text)
    finally:
        task.cancel()
        heart.cancel()
        await asyncio.gather(task, heart, return_exceptions=True)


async def _beat(desk: Desk, prediction: Prediction) -> NoReturn:
    while True:
        await asyncio.sleep(desk.lease_s / BEATS)
        try:
            # As it is now: parts that were submitted before tell of themselves meanwhile.
            now = replace(await desk.store.get(prediction.id), attempt=prediction.attempt)
            until = desk.clock() + desk.seconds(desk.lease_s)
            await desk.store.renew(now, owner=OWNER, lease_until=until)
        except (Conflict, NotFound) as error:
            raise Conflict("it is no longer ours to submit") from error
        except Exception:
            log.exception("%s: a heartbeat failed; trying again", prediction.id)
