"""The prediction and the table of moves: nothing else ever sets a status."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from fluxserve.core.errors import Conflict, Failure
from fluxserve.core.request import JSON, BlobRef, ImageRequest, Origin


class PredictionStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"  # its deadline came before it started

    @property
    def is_terminal(self) -> bool:
        return not NEXT[self]


SHOWN_COUNT = "shown_count"  # among the metrics of a prediction whose data is removed
S = PredictionStatus
NEXT: Mapping[S, frozenset[S]] = {
    S.QUEUED: frozenset({S.RUNNING, S.FAILED, S.CANCELED, S.EXPIRED}),
    S.RUNNING: frozenset({S.SUCCEEDED, S.FAILED, S.CANCELED, S.QUEUED}),  # QUEUED: worker lost
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELED: frozenset(),
    S.EXPIRED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputImage:
    """One finished picture."""

    blob: BlobRef
    seed: int
    flagged: bool = False  # the content check took offence; the picture is kept back


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One request and its whole life."""

    id: str  # 32 hex digits
    request: ImageRequest
    origin: Origin
    engine: str  # which engine serves it, decided at creation
    created_at: datetime
    status: PredictionStatus = PredictionStatus.QUEUED
    priority: int = 0  # higher goes first
    outputs: tuple[OutputImage, ...] = ()
    failure: Failure | None = None
    attempt: int = 0  # the fence: counts starts; a worker of an older attempt cannot write
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    cancel_requested: bool = False
    logs: str = ""
    progress: float = 0.0  # 0 .. 1, as of the last heartbeat
    metrics: Mapping[str, JSON] = field(default_factory=dict)  # seconds, counts, approximations
    served_by: str = ""  # model or channel that really did it
    data_removed: bool = False

    @property
    def is_terminal(self) -> bool:
        return self.status.is_terminal

    @property
    def shown(self) -> tuple[OutputImage, ...]:
        """The pictures to show; those kept back by the content check are left out."""
        return tuple(image for image in self.outputs if not image.flagged)

    @property
    def shown_count(self) -> int:
        """How many pictures were to be shown, also when they are no longer kept."""
        count = self.metrics.get(SHOWN_COUNT) if self.data_removed else None
        return count if isinstance(count, int) else len(self.shown)

    @property
    def is_withheld(self) -> bool:
        """Whether the content check kept every picture back."""
        had_any = bool(self.outputs) or (self.data_removed and SHOWN_COUNT in self.metrics)
        return self.status is S.SUCCEEDED and had_any and not self.shown_count

    def start(self, at: datetime) -> "Prediction":
        return replace(self._to(S.RUNNING), started_at=at, attempt=self.attempt + 1)

    def requeue(self, engine: str | None = None) -> "Prediction":
        """Back to the queue, keeping request and seed; `engine` names another one to try."""
        return replace(
            self._to(S.QUEUED),
            started_at=None,
            outputs=(),
            progress=0.0,
            engine=engine or self.engine,
        )

    def move_to(self, engine: str) -> "Prediction":
        """Still in the queue, but another engine's."""
        if self.status is not S.QUEUED:
            raise Conflict(f"a prediction that is {self.status} cannot change its engine")
        return replace(self, engine=engine)

    def succeed(
        self, outputs: tuple[OutputImage, ...], at: datetime, metrics: Mapping[str, JSON]
    ) -> "Prediction":
        return replace(
            self._to(S.SUCCEEDED),
            outputs=outputs,
            finished_at=at,
            progress=1.0,
            metrics={**self.metrics, **metrics},
        )

    def fail(self, failure: Failure, at: datetime) -> "Prediction":
        return replace(self._to(S.FAILED), failure=failure, finished_at=at, outputs=())

    def cancel(self, at: datetime) -> "Prediction":
        return replace(self._to(S.CANCELED), finished_at=at, cancel_requested=True, outputs=())

    def expire(self, at: datetime) -> "Prediction":
        return replace(self._to(S.EXPIRED), finished_at=at)

    def strip(self) -> "Prediction":
        """What stays when pictures and words are no longer kept."""
        request = replace(self.request, prompt="", negative_prompt="", images=(), mask=None)
        counted = {SHOWN_COUNT: self.shown_count} if self.outputs else {}
        return replace(
            self,
            request=request,
            origin=replace(self.origin, said={}),
            outputs=(),
            logs="",
            metrics={**self.metrics, **counted},
            data_removed=True,
        )

    def _to(self, status: PredictionStatus) -> "Prediction":
        if status not in NEXT[self.status]:
            raise Conflict(f"a prediction that is {self.status} cannot become {status}")
        return replace(self, status=status)
