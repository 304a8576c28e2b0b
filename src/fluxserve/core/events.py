"""Facts about predictions, and the bus that carries them to waiters, streams and listeners.

Durable events are numbered by the store and can be replayed; fleeting ones (progress, preview,
log) are seen by whoever listens at that moment, and dropped for a listener that is slow.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from fluxserve.core.request import JSON

log = logging.getLogger(__name__)

FLEETING_MAX = 64  # fleeting events waiting for one listener; older ones are dropped


class EventKind(StrEnum):
    QUEUED = "queued"
    STARTED = "started"
    OUTPUT = "output"
    REQUEUED = "requeued"
    CANCEL_REQUESTED = "cancel_requested"
    FINISHED = "finished"
    PROGRESS = "progress"
    PREVIEW = "preview"
    LOG = "log"

    @property
    def is_durable(self) -> bool:
        return self not in (EventKind.PROGRESS, EventKind.PREVIEW, EventKind.LOG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A fact about a prediction; `seq` is 1, 2, 3... once stored and 0 while fleeting."""

    prediction_id: str
    kind: EventKind
    at: datetime
    data: Mapping[str, JSON] = field(default_factory=dict)
    seq: int = 0


class Subscription:
    """One listener's mailbox: durable events always fit, fleeting ones push out older ones."""

    __slots__ = ("_fleeting", "_is_closed", "_items", "_wake")

    def __init__(self) -> None:
        self._items: deque[Event] = deque()
        self._fleeting = 0
        self._is_closed = False
        self._wake = asyncio.Event()

    def put(self, event: Event) -> None:
        if not event.kind.is_durable:
            if self._fleeting >= FLEETING_MAX:
                self._drop_oldest_fleeting()
            self._fleeting += 1
        self._items.append(event)
        self._wake.set()

    async def get(self, timeout_s: float | None = None) -> Event | None:
        """The next event, or None when `timeout_s` passes without one or the bus closes."""
        while not self._items:
            if self._is_closed:
                return None
            self._wake.clear()
            try:  # not wait_for: on Python 3.11 it forgets a cancel that meets a wake-up
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return None
        event = self._items.popleft()
        self._fleeting -= not event.kind.is_durable
        return event

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.get()) is not None:
            yield event

    def close(self) -> None:
        """Let whoever waits here go, after what has already arrived."""
        self._is_closed = True
        self._wake.set()

    def _drop_oldest_fleeting(self) -> None:
        for position, event in enumerate(self._items):
            if not event.kind.is_durable:
                del self._items[position]
                self._fleeting -= 1
                return


class EventBus:
    """Carries events inside one process. `ALL` listens to every prediction."""

    ALL = "*"

    def __init__(self) -> None:
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._hooks: list[Callable[[Event], None]] = []
        self.is_closed = False  # the server is going down: nobody should wait any longer

    def publish(self, event: Event) -> None:
        if self._subscriptions:
            for topic in (event.prediction_id, self.ALL):
                for subscription in self._subscriptions.get(topic, ()):
                    subscription.put(event)
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:  # what is told has happened: a listener cannot undo it
                log.exception("a listener failed at %s of %s", event.kind, event.prediction_id)

    @contextmanager
    def subscribe(self, prediction_id: str) -> Iterator[Subscription]:
        subscription = Subscription()
        if self.is_closed:
            subscription.close()
        self._subscriptions.setdefault(prediction_id, set()).add(subscription)
        try:
            yield subscription
        finally:
            topic = self._subscriptions[prediction_id]
            topic.discard(subscription)
            if not topic:
                del self._subscriptions[prediction_id]

    def hook(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` at every event: for counters and wake-ups, never for slow work."""
        self._hooks.append(listener)

    def close(self) -> None:
        """Send every waiter home; events still pass for those who record them."""
        self.is_closed = True
        for topic in self._subscriptions.values():
            for subscription in topic:
                subscription.close()
