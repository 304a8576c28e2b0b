"""A server without its HTTP side: real SQLite, real blobs, fake providers on loopback."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from obstore.store import MemoryStore

from fluxserve.core.access import OPEN_CALLER
from fluxserve.core.attempts import Attempt
from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.events import EventBus
from fluxserve.core.live import LiveBoard
from fluxserve.core.outcomes import Outcomes
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import BlobRef, ImageParams, Origin, OutputFormat
from fluxserve.core.routing import Route, Router
from fluxserve.core.service import Admission, PredictionService
from fluxserve.engines.upstream.base import Desk
from fluxserve.engines.upstream.channel import ChannelKind, ChannelSpec
from fluxserve.engines.upstream.service import Upstreams, channels_of
from fluxserve.images.guard import GuardedClient
from fluxserve.images.intake import ImageIntake
from fluxserve.storage.attempts import AttemptRows
from fluxserve.storage.blobs import Blobs
from fluxserve.storage.predictions import SqlPredictionStore
from fluxserve.storage.sqlite import SqliteDatabase
from tests.fakes.bfl import FakeBfl
from tests.fakes.openai import FakeOpenai
from tests.fakes.provider import FakeProvider
from tests.fakes.replicate import FakeReplicate
from tests.fakes.server import serving
from tests.fakes.wavespeed import FakeWavespeed

KONTEXT = "black-forest-labs/flux-kontext-pro"
FAKES: dict[ChannelKind, Callable[..., FakeProvider]] = {
    ChannelKind.REPLICATE: FakeReplicate,
    ChannelKind.BFL: FakeBfl,
    ChannelKind.WAVESPEED: FakeWavespeed,
    ChannelKind.OPENAI: FakeOpenai,
}
THEIR_NAMES = {
    ChannelKind.REPLICATE: KONTEXT,
    ChannelKind.BFL: "flux-kontext-pro",
    ChannelKind.WAVESPEED: "wavespeed-ai/flux-kontext-pro",
    ChannelKind.OPENAI: "flux-kontext-pro",
}


@dataclass(slots=True)
class Clock:
    """The time of day, put forward by hand."""

    ahead: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def ticks(self) -> float:
        return time.monotonic() + self.ahead.total_seconds()

    def advance(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


@dataclass(slots=True, kw_only=True)
class House:
    """What a server has, apart from HTTP."""

    clock: Clock
    database: SqliteDatabase
    store: SqlPredictionStore
    attempts: AttemptRows
    blobs: Blobs
    bus: EventBus
    catalog: Catalog
    intake: ImageIntake
    guard: GuardedClient
    specs: list[ChannelSpec] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    callback_base: str = ""
    elsewhere: set[str] = field(default_factory=set)  # channels that another server has
    upstreams: Upstreams | None = None
    service: PredictionService | None = None
    desk: Desk | None = None
    seeds: Iterator[int] = field(default_factory=lambda: iter(range(1000, 100_000)))

    def channel(self, spec: ChannelSpec, **route: Any) -> None:
        self.specs.append(spec)
        self.routes.append(Route(model="*", engine=spec.name, **route))

    async def open(self, *, is_alone: bool = True) -> None:
        """Start the upstream side, as after a start of the server."""

        def is_able(name: str) -> bool:
            assert self.upstreams is not None
            return self.upstreams.is_able(name)

        self.bus = EventBus()
        outcomes = Outcomes(store=self.store, blobs=self.blobs, bus=self.bus, clock=self.clock)
        router = Router(self.routes, is_able=is_able, draw=lambda: 0.0)
        self.desk = Desk(
            store=self.store,
            attempts=self.attempts,
            outcomes=outcomes,
            intake=self.intake,
            bus=self.bus,
            catalog=self.catalog,
            router=router,
            clock=self.clock,
            channels=channels_of(self.specs, self.guard, self.clock.ticks),
            callback_base=self.callback_base,
            is_elsewhere=lambda channel: channel in self.elsewhere,
        )
        self.upstreams = Upstreams(self.desk, is_alone=is_alone)
        self.service = PredictionService(
            store=self.store,
            blobs=self.blobs,
            bus=self.bus,
            live=LiveBoard(),
            catalog=self.catalog,
            router=router,
            clock=self.clock,
            estimate=lambda engine, request: None,
            admission=Admission(),
        )
        await self.upstreams.start()

    async def close(self) -> None:
        if self.upstreams is not None:
            await self.upstreams.stop()
        self.upstreams = None

    async def crash(self) -> None:
        """End like a killed process: whatever was under way stops where it is."""
        assert self.upstreams is not None
        mine = asyncio.current_task()
        names = ("claim ", "send ", "follow", "cancel ", "count ")
        dead = [
            task
            for task in asyncio.all_tasks()
            if task is not mine and task.get_name().startswith(names)
        ]
        for task in dead:
            task.cancel()
        await asyncio.gather(*dead, return_exceptions=True)
        await self.close()

    async def ask(self, prompt: str = "a fox", **said: Any) -> Prediction:
        assert self.service is not None
        given: dict[str, Any] = {"output_format": OutputFormat.PNG, "seed": next(self.seeds)} | said
        params = ImageParams(model=said.pop("model", KONTEXT), prompt=prompt, **given)
        return await self.service.create(params, Origin(dialect="native"), OPEN_CALLER)

    async def end(self, prediction: Prediction, timeout_s: float = 10.0) -> Prediction:
        assert self.service is not None
        done = await self.service.wait(prediction.id, timeout_s)
        assert done.is_terminal, f"still {done.status}: {await self.attempts.of(done.id)}"
        return done

    async def made(self, prompt: str = "a fox", **said: Any) -> Prediction:
        return await self.end(await self.ask(prompt, **said))

    async def until(self, is_so: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Wait until `is_so()` or what it returns, awaited, is true."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            value = is_so()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not come to pass")

    async def tries(self, prediction: Prediction) -> Sequence[Attempt]:
        return await self.attempts.of(prediction.id)


async def no_own_link(url: str) -> BlobRef | None:
    return None


@pytest.fixture
async def house() -> AsyncIterator[House]:
    database = SqliteDatabase(None)
    await database.start()
    blobs = Blobs(MemoryStore())
    guard = GuardedClient()
    seeds = iter(range(1_000_000, 2_000_000))
    built = House(
        clock=Clock(),
        database=database,
        store=SqlPredictionStore(database),
        attempts=AttemptRows(database),
        blobs=blobs,
        bus=EventBus(),
        catalog=Catalog(CARDS, draw_seed=lambda: next(seeds)),
        intake=ImageIntake(blobs, guard, no_own_link),
        guard=guard,
    )
    yield built
    await built.close()
    await guard.aclose()
    await database.stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


Lend = Callable[..., tuple[FakeProvider, ChannelSpec]]


@pytest.fixture
def lend(stack: ExitStack) -> Lend:
    """Start a fake provider; returns it and a channel to it, quick enough for tests."""

    def start(
        kind: ChannelKind, *, name: str = "", **said: Any
    ) -> tuple[FakeProvider, ChannelSpec]:
        fakes = {k: said.pop(k) for k in ("prefix", "can_list", "honours_idempotency") if k in said}
        fake = FAKES[kind](**fakes)
        origin = stack.enter_context(serving(fake.app()))
        spec = ChannelSpec(
            name=name or kind.value,
            kind=kind,
            base_url=origin + fake.prefix,
            key=fake.key,
            models={KONTEXT: THEIR_NAMES[kind], "*": ""},
            poll_s=0.02,
            poll_max_s=0.1,
            submit_timeout_s=1.0,
            connect_timeout_s=1.0,
            cool_down_s=0.05,
            cool_down_max_s=0.2,
        )
        return fake, replace(spec, **said)

    return start
