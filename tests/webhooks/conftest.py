"""A deliverer on a real store, with a told clock and a guarded client that may reach loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

import pytest

from fluxserve.core.deliveries import Delivery, DeliveryState
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import WebhookSpec
from fluxserve.images.guard import GuardedClient
from fluxserve.storage.deliveries import SqlDeliveryStore
from fluxserve.storage.predictions import SqlPredictionStore
from fluxserve.storage.sqlite import SqliteDatabase
from fluxserve.webhooks.courier import Courier
from fluxserve.webhooks.javascript import to_json
from fluxserve.webhooks.sender import Deliverer
from fluxserve.webhooks.signing import Message, Signer
from fluxserve.webhooks.traffic import Lanes
from fluxserve.webhooks.updates import Updates
from tests.webhooks.material import KEY, SECRET, Clock, a_delivery, a_prediction, until


class Outbox(SqlDeliveryStore):
    """The real store; remembers what was settled last, by delivery."""

    def __init__(self, database: SqliteDatabase) -> None:
        super().__init__(database)
        self.settled: dict[str, Delivery] = {}
        self.tries: list[str] = []

    async def settle(self, held: Delivery, after: Delivery) -> bool:
        is_kept = await super().settle(held, after)
        if is_kept:
            before = self.settled.get(after.id)
            if before is None or before.tries != after.tries:
                self.tries.append(after.id)
            self.settled[after.id] = after
        return is_kept


class Post:
    """Everything that sends, and everything it stands on."""

    def __init__(self, database: SqliteDatabase, timeout_s: float, *, drain_s: float = 2.0) -> None:
        self.clock = Clock()
        self.bus = EventBus()
        self.outbox = Outbox(database)
        self.store = SqlPredictionStore(database)
        self.guard = GuardedClient(["127.0.0.0/8"])
        signer = Signer(secret_of=lambda tenant: SECRET, key=KEY, is_inside=self.guard.is_inside)
        self.courier = Courier(
            poster=self.guard,
            render=self.render,
            signer=signer,
            clock=self.clock,
            timeout_s=timeout_s,
        )
        self.deliverer = Deliverer(
            store=self.outbox,
            predictions=self.store.get,
            courier=self.courier,
            bus=self.bus,
            clock=self.clock,
            draw=lambda: 0.5,
            lanes=Lanes(),
            drain_s=drain_s,
        )
        self.updates = Updates(
            bus=self.bus,
            predictions=self.store.get,
            courier=self.courier,
            clock=self.clock,
            interval_s=0.05,
        )

    def render(self, prediction: Prediction, delivery: Delivery) -> Message:
        outputs = [output.blob.key for output in prediction.outputs]
        body = {"id": prediction.id, "status": prediction.status.value, "output": outputs}
        return Message(body=to_json(body))

    async def owe(self, *urls: str, kind: str = "completed") -> list[Delivery]:
        """A stored prediction that owes a message to each of `urls`, due now."""
        prediction = a_prediction(WebhookSpec(url=urls[0]))
        owed = [
            replace(
                a_delivery(prediction.id, url),
                kind=kind,
                created_at=self.clock.at,
                next_at=self.clock.at,
            )
            for url in urls
        ]
        event = self.event(prediction, EventKind.QUEUED)
        await self.store.add(prediction, event, owed)
        return owed

    def event(self, prediction: Prediction, kind: EventKind) -> Event:
        return Event(prediction_id=prediction.id, kind=kind, at=self.clock.at)

    async def tried(self, delivery: Delivery, tries: int) -> Delivery:
        """The delivery as stored after so many tries."""
        await until(lambda: self._tries(delivery) >= tries)
        return await self.outbox.get(delivery.id)

    def _tries(self, delivery: Delivery) -> int:
        settled = self.outbox.settled.get(delivery.id)
        if settled is None:
            return 0
        return settled.tries if settled.state is not DeliveryState.SENT else 10**6

    @asynccontextmanager
    async def passing_time(self) -> AsyncIterator[None]:
        """Time runs ten times as fast as it does."""

        async def tick() -> None:
            while True:
                self.clock.advance(0.05)
                self.deliverer.wake()
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def pass_time(self, to: datetime) -> None:
        self.clock.at = to
        self.deliverer.wake()


@pytest.fixture
async def database() -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(None)
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
async def post(database: SqliteDatabase) -> AsyncIterator[Post]:
    post = Post(database, 0.5)
    yield post
    await post.updates.stop()
    await post.deliverer.stop()
    await post.guard.aclose()
