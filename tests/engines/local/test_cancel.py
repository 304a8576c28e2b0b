"""Jobs that nobody wants any more: nothing of them goes on, and nothing of them is left."""

import asyncio
import os
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve.core.ports import Progress
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.process import EngineProcess, Inbox
from fluxserve.engines.local.wire import Cancel, Ended, Made, Moved, Order
from tests.engines.local.stage import READY, Actor, Stage, played
from tests.engines.local.test_engine import job
from tests.engines.local.test_plan import TEXT

ORDER = replace(TEXT, id="j")
MADE = Made(id="j", index=0, key="picture-0", mime="image/png", width=8, height=8, seed=1)


async def cut_off(
    engine: LocalEngine, stage: Stage
) -> tuple[Actor, EngineProcess, asyncio.Task[Inbox]]:
    """A submission that is cancelled while it is being written."""
    actor = await stage.entrances.get()
    await actor.say(READY)
    await engine.wait_ready()
    (process,) = engine.processes
    # More than the socket takes at once: it is still being written.
    submitting = asyncio.create_task(process.submit(ORDER, [bytes(5_000_000)]))
    while not process.jobs:
        await asyncio.sleep(0)
    submitting.cancel()
    return actor, process, submitting


async def test_a_cancel_while_the_order_is_written_takes_the_job_back(tmp_path: Path) -> None:
    async with played(tmp_path) as (engine, stage):
        actor, process, submitting = await cut_off(engine, stage)
        assert isinstance(await actor.hear(), Order)
        assert await actor.hear() == Cancel(id="j")
        assert process.jobs == 1
        await actor.say(Ended(id="j", code="canceled"))
        with pytest.raises(asyncio.CancelledError):
            await submitting
        assert process.jobs == 0


async def test_a_cancel_while_the_order_is_written_to_a_process_that_dies_ends(
    tmp_path: Path,
) -> None:
    async with played(tmp_path) as (engine, stage):
        actor, process, submitting = await cut_off(engine, stage)
        await actor.aclose()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        assert process.jobs == 0


async def test_a_picture_that_is_finished_under_a_cancel_is_thrown_away(tmp_path: Path) -> None:
    async with played(tmp_path) as (engine, stage):
        actor = await stage.entrances.get()
        await actor.say(READY)
        async with aclosing(engine.run(job("j", "a taxi"))) as run:
            first = asyncio.ensure_future(anext(run))
            assert isinstance(await actor.hear(), Order)
            await actor.say(Moved(id="j", step=1, total=4, eta_s=None, position=0))
            assert isinstance(await first, Progress)
            closing = asyncio.create_task(run.aclose())
            assert await actor.hear() == Cancel(id="j")
            (tmp_path / MADE.key).write_bytes(b"picture")
            await actor.say(MADE)
            await actor.say(Ended(id="j", code="canceled"))
            await closing
        assert engine.processes[0].jobs == 0
        assert not os.listdir(tmp_path)


async def test_a_picture_of_a_job_that_nobody_knows_is_thrown_away(tmp_path: Path) -> None:
    async with played(tmp_path) as (engine, stage):
        actor = await stage.entrances.get()
        await actor.say(READY)
        await engine.wait_ready()
        inbox = await engine.processes[0].submit(ORDER, [])
        for key in ("picture-0", "picture-1"):
            (tmp_path / key).write_bytes(b"picture")
        await actor.say(replace(MADE, id="somebody", key="picture-1"))
        await actor.say(MADE)
        assert await inbox.get() == (MADE, [])
        assert os.listdir(tmp_path) == ["picture-0"]
