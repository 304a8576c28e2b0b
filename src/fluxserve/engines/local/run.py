"""A job inside the engine process, and what the loop needs of the device. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

from fluxserve.core.errors import FluxserveError
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import JSON
from fluxserve.engines.local.plan import Plan
from fluxserve.engines.local.policy import Sample
from fluxserve.engines.local.wire import Cancel, Order

H = TypeVar("H")  # a sample on the device; the loop only passes it on


class NoRoom(Exception):
    """The device ran out of memory; nothing has changed and less can be tried."""


class Spoiled(Exception):
    """Samples came to values that are no numbers; `places` are those of the culprits."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(f"not a number in {len(places)} samples")
        self.places = tuple(places)


class DeviceLost(Exception):
    """The device answers nothing any more; only a new process can go on."""


class Lane(Protocol):
    """A thread that does what it is given, in order."""

    def give(self, work: Callable[[], None]) -> None:
        """`work` handles its own errors."""
        ...


class Worker(Protocol[H]):
    """The device and its model, as the loop sees them."""

    batch_class: str  # only samples of one class share a forward

    def plan(self, order: Order) -> Plan:
        """How it will be made; EngineError when it cannot be."""
        ...

    def encode(
        self, order: Order, files: Sequence[bytes], plan: Plan, note: Callable[[str], None]
    ) -> Sequence[H]:
        """A sample for each index of the order, before its first step; notes are for the caller."""
        ...

    def advance(self, samples: Sequence[H]) -> None:
        """One step for all of them, or for none: NoRoom, Spoiled, DeviceLost."""
        ...

    def glimpse(self, sample: H, plan: Plan) -> Callable[[], EncodedImage] | None:
        """A preview: a quick look now, and what is left to do for a picture of it."""
        ...

    def decode(self, order: Order, files: Sequence[bytes], plan: Plan, sample: H) -> EncodedImage:
        """The finished picture: NoRoom, Spoiled, DeviceLost."""
        ...

    def release(self, order_id: str) -> None:
        """The order has ended, in whatever way: nothing need be kept for it."""
        ...

    def make_room(self) -> None:
        """Something did not fit: give back what memory can be spared. No step runs now."""
        ...

    def facts(self) -> Mapping[str, JSON]:
        """Device, number type, what the caches did: for the record of a job."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class Run(Generic[H]):
    """A job on its way. Only the loop's thread changes it."""

    order: Order
    files: Sequence[bytes]
    plan: Plan
    arrived: float
    samples: dict[int, H] = field(default_factory=dict)  # by index of the output
    left: int = 0  # outputs that are not made yet
    in_lanes: int = 0  # pieces of work that lanes have in hand
    failure: FluxserveError | None = None
    is_canceled: bool = False
    levels: dict[int, int] = field(default_factory=dict)  # noise levels done, by index likewise
    calls: int = 0  # of the model, for all outputs together
    retries: int = 0
    is_starved: bool = False  # its next step found no room even alone, and is tried once more
    step_s: float = 0.0  # its longest step, in seconds, as foreseen
    shared: int = 0  # samples that were in the same forwards, this one's included
    encode_s: float = 0.0
    decode_s: float = 0.0
    first_step_at: float | None = None
    last_step_at: float = 0.0
    told_at: float = -1.0
    told_position: int = -1

    @property
    def id(self) -> str:
        return self.order.id

    def sample(self, index: int, batch_class: str) -> Sample:
        """An output as the scheduler sees it."""
        order = self.order
        return Sample(
            id=f"{order.id}/{index}",
            job_id=order.id,
            plan=self.plan.steps,
            submitted_at=self.arrived,
            batch_class=batch_class,
            key=order.key,
            priority=order.priority,
            deadline=None if order.deadline_s is None else self.arrived + order.deadline_s,
            alone=order.alone,
        )

    @property
    def is_over(self) -> bool:
        """Cancelled or failed: nothing more is done for it."""
        return self.is_canceled or self.failure is not None

    @property
    def outputs(self) -> int:
        return len(self.order.indexes)

    @property
    def steps(self) -> int:
        """Noise levels of all outputs together."""
        return sum(self.levels.values())

    @property
    def steps_each(self) -> int:
        return len(self.plan.steps)

    def metrics(self, now: float) -> dict[str, JSON]:
        """Where the time went, in seconds, and what was computed."""
        first = self.first_step_at if self.first_step_at is not None else now
        found: dict[str, JSON] = {
            "queue_s": round(max(0.0, first - self.arrived - self.encode_s), 4),
            "encode_s": round(self.encode_s, 4),
            "denoise_s": round(max(0.0, self.last_step_at - first), 4),
            "decode_s": round(self.decode_s, 4),
            "engine_s": round(now - self.arrived, 4),
            "steps": self.steps_each,
            "model_calls": self.calls,
            "batch_mean": round(self.shared / self.calls, 2) if self.calls else 0,
            "approximations": list(self.plan.approximations),
        }
        if reusing := self.plan.calls_reusing:
            found["model_calls_without_references"] = reusing * self.outputs
        size = (self.plan.width, self.plan.height)
        if size != (self.plan.out_width, self.plan.out_height):
            found["upscaled_from"] = f"{size[0]}x{size[1]}"
        return found


# --- what comes to the loop's inbox ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded(Generic[H]):
    run: Run[H]
    samples: Sequence[H]
    seconds: float


@dataclass(frozen=True, slots=True)
class Decoded(Generic[H]):
    run: Run[H]
    seconds: float


@dataclass(frozen=True, slots=True)
class Glimpsed(Generic[H]):
    run: Run[H]


@dataclass(frozen=True, slots=True)
class LaneFailed(Generic[H]):
    run: Run[H]
    error: Exception


@dataclass(frozen=True, slots=True)
class LaneFull(Generic[H]):
    """A lane's work found no room; it is to be done again while no step is in its way."""

    run: Run[H]
    lane: Lane
    work: Callable[[], Encoded[H] | Decoded[H] | Glimpsed[H]]


@dataclass(frozen=True, slots=True)
class Arrived:
    order: Order
    files: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Outcome: TypeAlias = Encoded[H] | Decoded[H] | Glimpsed[H] | LaneFailed[H] | LaneFull[H]
News: TypeAlias = Arrived | Cancel | Outcome[H] | Stop
