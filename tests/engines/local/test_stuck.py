"""A process that hangs although it gives signs of life, and one that only has long work to do."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from fluxserve.core.errors import EngineError
from fluxserve.core.ports import EngineUpdate, Output
from fluxserve.engines.local import process
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.turns import Turns
from fluxserve.engines.local.wire import Beat, Ended, Made, Order
from tests.engines.local.stage import READY, Actor, played
from tests.engines.local.test_engine import job
from tests.engines.local.test_loop import Bench, Blank, Device

COST = (1.0, 0.0, 0.0, 0.0)
CHECK_S = 0.01


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(process, "CHECK_S", CHECK_S)


async def looks(engine: LocalEngine, busy_s: float) -> None:
    """Until the server has heard of it and looked at it a few times."""
    (one,) = engine.processes
    while one.facts["busy_s"] != busy_s:  # type: ignore[call-overload, index]
        await asyncio.sleep(0)
    await asyncio.sleep(5 * CHECK_S)


async def collect(engine: LocalEngine, id_: str) -> list[EngineUpdate]:
    async with aclosing(engine.run(job(id_, "a taxi"))) as updates:
        return [update async for update in updates]


async def make(actor: Actor, spool: Path) -> None:
    """Do as a process that works: one picture."""
    order = await actor.hear()
    assert isinstance(order, Order)
    (spool / "key").write_bytes(b"picture")
    made = Made(id=order.id, index=0, key="key", mime="image/png", width=8, height=8, seed=1)
    await actor.say(made)
    await actor.say(Ended(id=order.id))


async def test_work_that_keeps_the_device_too_long_costs_the_process_and_then_its_request(
    tmp_path: Path,
) -> None:
    async with played(tmp_path, stuck_s=120.0) as (engine, stage):
        heavy = asyncio.create_task(collect(engine, "heavy"))
        for _ in range(2):
            actor = await stage.entrances.get()
            await actor.say(READY)
            assert isinstance(await actor.hear(), Order)
            await actor.say(Beat(busy_s=121.0, cost=COST))
        with pytest.raises(EngineError, match="stopped 2 times while it worked on this request"):
            await heavy
        actor = await stage.entrances.get()
        await actor.say(READY)
        light = asyncio.create_task(collect(engine, "light"))
        await make(actor, tmp_path)
        assert any(isinstance(update, Output) for update in await light)
        assert engine.processes[0].deaths == 2


async def test_work_that_was_foreseen_to_be_long_is_no_hang(tmp_path: Path) -> None:
    """A step of FLUX.1 at one megapixel is foreseen to take 1,132 s on two CPU cores."""
    async with played(tmp_path, stuck_s=120.0) as (engine, stage):
        actor = await stage.entrances.get()
        await actor.say(READY)
        await engine.wait_ready()
        await actor.say(Beat(busy_s=5000.0, cost=COST, expected_s=1132.0))
        await looks(engine, busy_s=5000.0)
        assert engine.trouble is None
        await actor.say(Beat(busy_s=5661.0, cost=COST, expected_s=1132.0))
        await stage.entrances.get()
        assert actor.was_killed


async def test_a_server_that_was_paused_takes_no_process_for_silent(tmp_path: Path) -> None:
    async with played(tmp_path, silence_s=0.2) as (engine, stage):
        actor = await stage.entrances.get()
        await actor.say(READY)
        await engine.wait_ready()
        time.sleep(0.5)  # noqa: ASYNC251 - nothing of the server runs meanwhile
        await asyncio.sleep(5 * CHECK_S)  # it looks before there is anything to hear
        await actor.say(Beat(busy_s=1.0, cost=COST))
        await looks(engine, busy_s=1.0)
        assert not actor.was_killed
        await stage.entrances.get()  # silent from here on
        assert actor.was_killed


def test_a_pause_of_the_engine_process_is_no_time_at_work() -> None:
    turns = Turns()
    with turns:
        while not turns.busy_s:
            pass
        turns.pardon(1000.0)
        assert 0.0 <= turns.busy_s < 10.0


# --- what is foreseen -----------------------------------------------------------------------------


class Clockwork(Device):
    """Notes what is foreseen while it works."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench
        self.expected: list[float] = []

    def advance(self, samples: Sequence[Blank]) -> None:
        self.expected.append(self._bench.loop.expected_s)
        super().advance(samples)


def test_the_loop_tells_how_long_the_work_in_hand_may_take() -> None:
    bench = Bench()
    device = bench.device = bench.loop._worker = Clockwork(bench)
    assert bench.loop.expected_s == 0.0
    bench.is_holding = True
    bench.order("j0")
    bench.loop.turn(wait=False)
    alone = bench.loop.expected_s  # one of its steps, while it is encoded
    assert alone > 0.5
    bench.is_holding = False
    bench.held.pop()()
    bench.order("j1")
    bench.finish()
    assert min(device.expected) >= alone * 0.9
    assert bench.loop.expected_s == 0.0


def test_an_order_of_which_everything_is_made_ends_at_once() -> None:
    bench = Bench()
    bench.order("j0", indexes=())
    bench.finish()
    assert bench.ended() == {"j0": ""}
