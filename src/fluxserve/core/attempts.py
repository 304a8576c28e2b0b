"""Attempts: every paid submission to a provider as a row, written before it is sent.

intent -> accepted -> done | failed | canceled
intent -> void (it provably did not happen) | unknown -> accepted | void | failed
A row is due at `next_at`: an accepted one is polled then, an intent or unknown one is looked up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import Failure
from fluxserve.core.events import Event
from fluxserve.core.prediction import OutputImage, Prediction

SENT = "sent"  # a fact: the input as it was sent, prompt and all, to tell its job from others


class AttemptState(StrEnum):
    INTENT = "intent"  # about to be sent, or sent, or lost with its process
    ACCEPTED = "accepted"  # the provider has it under `upstream_id`
    FETCHED = "fetched"  # its pictures are ours; other parts of the prediction are not done yet
    DONE = "done"
    FAILED = "failed"
    CANCELED = "canceled"
    VOID = "void"  # nothing was submitted
    UNKNOWN = "unknown"  # sent, and nobody can tell what became of it

    @property
    def is_open(self) -> bool:
        """Whether the provider may be working on it."""
        return bool(NEXT[self])


A = AttemptState
NEXT: Mapping[A, frozenset[A]] = {
    A.INTENT: frozenset({A.ACCEPTED, A.DONE, A.FAILED, A.VOID, A.UNKNOWN}),
    A.UNKNOWN: frozenset({A.ACCEPTED, A.DONE, A.FAILED, A.VOID}),
    A.ACCEPTED: frozenset({A.FETCHED, A.DONE, A.FAILED, A.CANCELED}),
    A.FETCHED: frozenset({A.DONE}),
    A.DONE: frozenset(),
    A.FAILED: frozenset(),
    A.CANCELED: frozenset(),
    A.VOID: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One submission to one channel. Its id is the token that callbacks and retries carry."""

    id: str  # 32 hex digits
    prediction_id: str
    fence: int  # the prediction's attempt number when it was written
    channel: str
    model: str  # as the provider calls it
    part: int = 0  # which share of the prediction's outputs, where a provider makes fewer at once
    parts: int = 1
    state: AttemptState = AttemptState.INTENT
    created_at: datetime
    next_at: datetime | None  # None: nothing is due
    upstream_id: str = ""
    poll_url: str = ""
    polls: int = 0
    trouble: int = 0  # polls in a row that came to nothing
    cost_micro: int = 0  # millionths of a USD that the provider took, as far as known
    outputs: tuple[OutputImage, ...] = ()
    failure: Failure | None = None
    refused: bool = False  # void because the channel said no, not because it never heard
    finished_at: datetime | None = None
    facts: Mapping[str, str] = field(default_factory=dict)  # small things a provider needs again

    def without_words(self) -> "Attempt":
        """What was asked for is dropped once nobody has to look for the job any more."""
        facts = {name: fact for name, fact in self.facts.items() if name != SENT}
        return replace(self, facts=facts)


class AttemptStore(Protocol):
    """Attempts, kept safe. Every write is one transaction, and durable when it returns."""

    async def intend(self, attempt: Attempt, lease_until: datetime) -> None:
        """Write an intent, and prolong the prediction's lease with it.

        Conflict unless the prediction runs under `attempt.fence`, or when an open attempt for the
        same part exists already.
        """
        ...

    async def move(self, before: Attempt, after: Attempt) -> Attempt:
        """Save `after`; Conflict when state or start are no longer those of `before`, or when
        another attempt of the channel already has `after.upstream_id`."""
        ...

    async def finish(
        self,
        attempt: tuple[Attempt, Attempt],
        prediction: tuple[Prediction, Prediction],
        events: Sequence[Event],
        deliveries: Sequence[Delivery],
    ) -> Sequence[Event]:
        """Both end in one transaction, each given before and after, and `events` are numbered.

        The last event is that of the prediction's move. Conflict, and nothing is saved, when
        either is no longer what it was before.
        """
        ...

    async def get(self, attempt_id: str) -> Attempt: ...  # NotFound

    async def of(self, prediction_id: str) -> Sequence[Attempt]:
        """All attempts of a prediction, oldest first."""
        ...

    async def claim_due(self, at: datetime, until: datetime, limit: int) -> Sequence[Attempt]:
        """Open attempts whose time has come, the longest due first; `next_at` moves to `until`."""
        ...

    async def upcoming(self, limit: int) -> Sequence[tuple[str, datetime]]:
        """The ids of open attempts that are or become due, and when, the first due first."""
        ...

    async def hurry(self, at: datetime, apart: timedelta) -> int:
        """Make everything that is due at any time due soon after `at`; returns how many.

        For a process that knows it is the only one: whoever was to see to them is dead. They are
        spread over as many times `apart` as there are rows.
        """
        ...

    async def open_counts(self) -> Mapping[str, int]:
        """By channel: attempts that the provider may be working on and that are still followed."""
        ...

    async def unknown_counts(self) -> Mapping[str, int]:
        """By channel: attempts of which nobody can tell, given up or not."""
        ...

    async def bound_ids(self, channel: str, upstream_ids: Sequence[str]) -> frozenset[str]:
        """Those of `upstream_ids` that some attempt of the channel already has."""
        ...

    async def page(
        self, *, channel: str | None = None, state: AttemptState | None = None, limit: int = 100
    ) -> Sequence[Attempt]:
        """Newest first."""
        ...
