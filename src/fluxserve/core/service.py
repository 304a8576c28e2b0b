"""The one way in: create, look at, wait for and cancel predictions."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fluxserve.core.access import Caller
from fluxserve.core.catalog import Catalog
from fluxserve.core.deliveries import plan
from fluxserve.core.errors import Conflict, NotFound
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.live import LiveBoard
from fluxserve.core.ports import BlobStore, Idempotency, PredictionStore, Query
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import ImageParams, ImageRequest, Origin
from fluxserve.core.routing import Router

RECHECK_S = 2.0  # the bus is a hint: waiters read the store again this often


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Bounds on what is let in; 0 means no bound."""

    queue_max: int = 10_000
    concurrency_max: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """When an unfinished prediction may be done."""

    queue_position: int  # 0: running or next
    eta_s: float | None  # None: unknown


class PredictionService:
    """What the dialects call; knows rules and ports, nothing of HTTP."""

    def __init__(
        self,
        *,
        store: PredictionStore,
        blobs: BlobStore,
        bus: EventBus,
        live: LiveBoard,
        catalog: Catalog,
        router: Router,
        clock: Callable[[], datetime],
        estimate: Callable[[str, ImageRequest], float | None],
        admission: Admission,
        place: Callable[[str, ImageRequest], str] = lambda engine, request: engine,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._bus = bus
        self._live = live
        self._catalog = catalog
        self._router = router
        self._clock = clock
        self._estimate = estimate
        self._admission = admission
        self._place = place

    async def create(
        self,
        params: ImageParams,
        origin: Origin,
        caller: Caller,
        *,
        idempotency: Idempotency | None = None,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> Prediction:
        """Accept a request, durably. InvalidRequest, UnknownModel, Forbidden, QueueFull,
        RateLimited, BudgetExhausted, Conflict (idempotency name reused for another body)."""
        card = self._catalog.card(params.model)
        caller.may_use(card.id)
        request = self._catalog.complete(params)
        at = self._clock()
        prediction = Prediction(
            id=new_id(),
            request=request,
            origin=origin,
            engine=self._place(self._router.choose(card, request), request),
            created_at=at,
            priority=priority,
            deadline_at=at + timedelta(seconds=deadline_s) if deadline_s else None,
        )
        event = Event(prediction_id=prediction.id, kind=EventKind.QUEUED, at=at, seq=1)
        limit = caller.key.concurrency_max if caller.key else 0
        stored = await self._store.add(
            prediction,
            event,
            plan(prediction, EventKind.QUEUED, at),
            idempotency,
            self._admission.queue_max,
            limit or self._admission.concurrency_max,
        )
        if stored.id == prediction.id:
            self._bus.publish(event)
        return stored

    async def get(self, prediction_id: str, caller: Caller | None = None) -> Prediction:
        """The prediction as of now. `caller` None: whoever has the id. NotFound."""
        prediction = await self._store.get(prediction_id)
        if caller is not None and not caller.may_see(prediction.origin.key_id):
            raise NotFound("there is no such prediction")
        return self._live.merged(prediction)

    async def page(self, query: Query) -> Sequence[Prediction]:
        """Newest first; `query.key_id` narrows it to one key's."""
        return [self._live.merged(row) for row in await self._store.page(query)]

    async def count(self, query: Query) -> int:
        return await self._store.count(query)

    async def cancel(self, prediction_id: str, caller: Caller | None = None) -> Prediction:
        """Cancelled from the caller's view at once; the device stops within a step.

        A finished prediction is returned unchanged.
        """
        while True:
            before = await self.get(prediction_id, caller)
            if before.is_terminal:
                return before
            at = self._clock()
            after = before.cancel(at)
            try:
                return await self._finish(before, after, at)
            except Conflict:
                continue  # it moved in between: look again

    async def expire(self, prediction: Prediction) -> Prediction:
        """End what its deadline overtook: expired while queued, canceled while running."""
        at = self._clock()
        is_queued = prediction.status is PredictionStatus.QUEUED
        after = prediction.expire(at) if is_queued else prediction.cancel(at)
        return await self._finish(prediction, after, at)

    async def delete(self, prediction_id: str, caller: Caller | None = None) -> None:
        """Forget a finished prediction and its files; an unfinished one is cancelled first."""
        await self.cancel(prediction_id, caller)
        for blob in await self._store.delete(prediction_id):
            await self._blobs.delete(blob.key)

    @property
    def is_closing(self) -> bool:
        """Whether the server is going down: whoever waits gets what there is."""
        return self._bus.is_closed

    async def wait(self, prediction_id: str, timeout_s: float) -> Prediction:
        """The prediction once it is finished, or as it is when the time is up."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        # Listen first, read second: an event landing in between is seen twice, never missed.
        with self._bus.subscribe(prediction_id) as subscription:
            while True:
                prediction = await self.get(prediction_id)
                left = end - loop.time()
                # Not `left <= 0`: NaN seconds would wait for ever, and never let the loop turn.
                if prediction.is_terminal or not left > 0 or self._bus.is_closed:
                    return prediction
                until = loop.time() + min(left, RECHECK_S)
                while (pause := until - loop.time()) > 0 and not self._bus.is_closed:
                    event = await subscription.get(pause)
                    if event is not None and event.kind is EventKind.FINISHED:
                        break

    async def follow(self, prediction_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Stored events after number `after`, then live ones; ends with the last event."""
        with self._bus.subscribe(prediction_id) as subscription:
            seen = after
            while True:
                for event in await self._store.events(prediction_id, seen):
                    seen = event.seq
                    yield event
                    if event.kind is EventKind.FINISHED:
                        return
                prediction = await self._store.get(prediction_id)
                if prediction.is_terminal and not await self._store.events(prediction_id, seen):
                    return
                if self._bus.is_closed:
                    return
                while (fresh := await subscription.get(RECHECK_S)) is not None:
                    if fresh.kind.is_durable:
                        break
                    yield fresh

    async def outlook(self, prediction: Prediction) -> Outlook:
        """Queue position and seconds to the end, as far as anybody can tell."""
        if prediction.is_terminal:
            return Outlook(queue_position=0, eta_s=0.0)
        live = self._live.get(prediction.id)
        if live and live.progress:
            position = live.progress.queue_position
            return Outlook(queue_position=position, eta_s=live.progress.eta_s)
        position, waiting, busy_s = 0, 0, 0.0
        if prediction.status is PredictionStatus.QUEUED:
            position = await self._store.queue_position(prediction)
            waiting, busy_s = self._live.held(prediction.engine)
        alone = self._estimate(prediction.engine, prediction.request)
        eta_s = None if alone is None else busy_s + alone * (position + 1)
        return Outlook(queue_position=waiting + position, eta_s=eta_s)

    async def _finish(self, before: Prediction, after: Prediction, at: datetime) -> Prediction:
        data = {"status": after.status.value}
        kind = EventKind.FINISHED
        event = Event(prediction_id=after.id, kind=kind, at=at, data=data)
        stored = await self._store.move(before, after, event, plan(after, kind, at))
        self._bus.publish(stored)
        return after
