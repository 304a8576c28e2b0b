"""A dispatcher and a service on in-memory SQLite, an engine that does as it is told."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.dispatcher import Dispatcher, Patience
from fluxserve.core.errors import InputUnreachable
from fluxserve.core.events import EventBus
from fluxserve.core.keeper import Keeper, Retention
from fluxserve.core.live import LiveBoard
from fluxserve.core.outcomes import Outcomes
from fluxserve.core.ports import EncodedImage, EngineUpdate, Job, Output, Progress
from fluxserve.core.request import ImageInput, ImageRequest
from fluxserve.core.routing import Route, Router
from fluxserve.core.service import Admission, PredictionService
from fluxserve.storage.blobs import Blobs, open_blobs
from fluxserve.storage.files import SqlFileStore
from fluxserve.storage.opening import open_database
from fluxserve.storage.predictions import SqlPredictionStore

PIXEL = EncodedImage(data=b"pixel", mime="image/png", width=1, height=1)
Script = Callable[[Job], AsyncGenerator[EngineUpdate, None]]


async def one_picture(job: Job) -> AsyncGenerator[EngineUpdate, None]:
    yield Progress(step=1, total=1)
    yield Output(index=0, image=PIXEL, seed=job.request.seed)


@dataclass
class ToldEngine:
    """Runs whatever `script` it was given, and remembers the jobs."""

    name: str = "told"
    capacity: int = 4
    script: Script = one_picture
    jobs: list[Job] = field(default_factory=list)
    running: int = 0
    trouble: str | None = None

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def estimate(self, request: ImageRequest) -> float | None:
        return 2.0

    async def run(self, job: Job) -> AsyncGenerator[EngineUpdate, None]:
        self.jobs.append(job)
        self.running += 1
        try:
            async for update in self.script(job):
                yield update
        finally:
            self.running -= 1


class EmptyIntake:
    """No network: every URL is out of reach."""

    async def take(self, data: bytes, field_name: str) -> ImageInput:
        raise AssertionError("nothing is uploaded here")

    async def take_text(self, text: str, field_name: str) -> ImageInput:
        raise AssertionError("nothing is uploaded here")

    async def check_url(self, url: str, field_name: str) -> None:
        raise AssertionError("the core is given checked inputs")

    async def fetch(self, url: str) -> EncodedImage:
        raise InputUnreachable(f"{url} cannot be reached")

    async def load(self, image: ImageInput) -> EncodedImage:
        return await self.fetch(image.url or "")


@dataclass
class Bench:
    """The core with its rooms around it."""

    store: SqlPredictionStore
    files: SqlFileStore
    blobs: Blobs
    bus: EventBus
    live: LiveBoard
    catalog: Catalog
    clock: "MovableClock"
    engine: ToldEngine
    service: PredictionService
    outcomes: Outcomes

    def dispatcher(self, **patience: float) -> Dispatcher:
        waits = {"heartbeat_s": 0.05, "poll_s": 0.02, "drain_s": 0.05, **patience}
        return Dispatcher(
            engine=self.engine,
            store=self.store,
            outcomes=self.outcomes,
            intake=EmptyIntake(),
            bus=self.bus,
            live=self.live,
            catalog=self.catalog,
            clock=self.clock,
            owner="test",
            patience=Patience(**waits),  # type: ignore[arg-type]
        )

    def keeper(self, retention: Retention | None = None, **more: Any) -> Keeper:
        return Keeper(
            store=self.store,
            files=self.files,
            blobs=self.blobs,
            service=self.service,
            outcomes=self.outcomes,
            clock=self.clock,
            retention=retention or Retention(),
            attempts_max=3,
            **more,
        )


class MovableClock:
    """Now, plus what a test adds."""

    def __init__(self) -> None:
        self.at = datetime(2026, 5, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    database = open_database("sqlite://")
    await database.start()
    clock = MovableClock()
    bus, live = EventBus(), LiveBoard()
    store = SqlPredictionStore(database)
    blobs = open_blobs("memory://")
    catalog = Catalog(CARDS, lambda: 7)
    engine = ToldEngine()
    router = Router(
        [Route(model="*", engine=engine.name)], is_able=lambda name: True, draw=lambda: 0.0
    )
    service = PredictionService(
        store=store,
        blobs=blobs,
        bus=bus,
        live=live,
        catalog=catalog,
        router=router,
        clock=clock,
        estimate=lambda name, request: engine.estimate(request),
        admission=Admission(queue_max=5),
    )
    yield Bench(
        store=store,
        files=SqlFileStore(database, clock),
        blobs=blobs,
        bus=bus,
        live=live,
        catalog=catalog,
        clock=clock,
        engine=engine,
        service=service,
        outcomes=Outcomes(store=store, blobs=blobs, bus=bus, clock=clock),
    )
    await database.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
