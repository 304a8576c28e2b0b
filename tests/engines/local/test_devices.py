"""The engine as the settings make it: two devices that share the work, and a LoRA from a URL."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import save

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import EngineError
from fluxserve.core.ports import EngineUpdate, Log, Progress
from fluxserve.core.request import LoraRef
from fluxserve.engines.choose import choose_engines, devices_of
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.settings import load
from tests.engines.local.test_engine import (
    WIDTH,
    collect,
    difference,
    job,
    outputs,
    photo,
    pixels,
    report,
)
from tests.engines.local.test_loras import LOOPBACK, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG = 60  # steps: long enough to be killed in the middle


def chosen(folder: Path) -> LocalEngine:
    """What the server would make: two processes on the CPU, and every approximation allowed."""
    flags = {
        "data_dir": str(folder),
        "fetch": {"allow": LOOPBACK},
        "engine": {"device": "cpu,cpu", "go_fast": ("skip", "ref_kv")},
    }
    choice = choose_engines(load(flags, environ={}), Catalog(CARDS, lambda: 1))
    (found,) = (engine for engine in choice.engines if isinstance(engine, LocalEngine))
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalEngine]:
    found = chosen(tmp_path_factory.mktemp("data"))
    await found.start()
    for process in found.processes:
        await process.wait_ready()
    yield found
    await found.stop()


async def test_a_lora_by_url_gives_what_the_same_file_by_name_gives(
    engine: LocalEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(0)
    layer = "transformer.single_transformer_blocks.0.attn.to_v"
    body = save(
        {
            f"{layer}.lora_A.weight": torch.randn(4, WIDTH),
            f"{layer}.lora_B.weight": torch.randn(WIDTH, 4),
        }
    )
    data = engine.processes[0].setup.spool.parents[2]
    (data / "loras").mkdir()
    (data / "loras" / "wild.safetensors").write_bytes(body)
    async with serving(body) as site:
        by_url, by_name, plain = await asyncio.gather(
            collect(engine, job("url", "a taxi", loras=(LoraRef(path=site.url(), scale=0.2),))),
            collect(engine, job("name", "a taxi", loras=(LoraRef(path="wild", scale=0.2),))),
            collect(engine, job("plain", "a taxi")),
        )
        assert len(site.asked) == 1
    first, second, third = (pixels(outputs(found)[0].image) for found in (by_url, by_name, plain))
    assert difference(first, second) <= 1
    assert difference(first, third) > 10


async def test_a_lora_of_another_model_by_url_fails_alone_with_the_reason(
    engine: LocalEngine,
) -> None:
    body = save({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 3)})
    async with serving(body) as site:
        with pytest.raises(EngineError, match=r"loras: LoRA: .* only one of its two") as caught:
            await collect(engine, job("bad", "a taxi", loras=(LoraRef(path=site.url()),)))
    assert caught.value.field == "loras"


async def test_two_devices_share_the_work(engine: LocalEngine) -> None:
    running = [asyncio.create_task(collect(engine, job(f"s{at}", "a taxi"))) for at in range(4)]
    most = [0, 0]
    while not all(task.done() for task in running):
        most = [max(pair) for pair in zip(most, (p.jobs for p in engine.processes), strict=True)]
        await asyncio.wait(running, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
    assert most == [2, 2]
    pictures = [pixels(outputs(task.result())[0].image) for task in running]
    assert all(difference(picture, pictures[0]) <= 1 for picture in pictures)


async def test_every_device_says_what_it_is_and_does(engine: LocalEngine) -> None:
    first, second = devices_of(engine)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first.keys() == second.keys()
    assert first["device"] == "cpu"
    assert first["dtype"] == "float32"
    assert (first["state"], first["running"], first["restarts"]) == ("ready", 0, 0)
    assert first["name"]


async def test_a_device_that_dies_leaves_its_work_to_the_other(engine: LocalEngine) -> None:
    """The jobs of the dead one end with the picture they would have had, the others unharmed."""
    (calm,) = outputs(await collect(engine, job("calm", "a taxi", num_steps=LONG)))
    victim, other = engine.processes
    pid, kept = victim.pid, other.pid
    assert pid is not None
    hit = asyncio.Event()

    async def follow(name: str) -> list[EngineUpdate]:
        found = []
        async with (
            asyncio.timeout(120),
            aclosing(engine.run(job(name, "a taxi", num_steps=LONG))) as run,
        ):
            async for update in run:
                found.append(update)
                if isinstance(update, Progress) and update.step > 3:
                    hit.set()
        return found

    jobs = [asyncio.create_task(follow(f"d{at}")) for at in range(4)]
    await hit.wait()
    os.kill(pid, signal.SIGKILL)
    found = await asyncio.gather(*jobs)
    for updates in found:
        assert difference(pixels(outputs(updates)[0].image), pixels(calm.image)) <= 1
    again = [any("restarted" in u.text for u in ups if isinstance(u, Log)) for ups in found]
    assert sum(again) == 2
    assert (other.pid, other.deaths, victim.deaths) == (kept, 0, 1)
    await victim.wait_ready()
    assert victim.pid != pid


async def test_an_edit_may_skip_steps_and_reuse_its_reference_and_says_so(
    engine: LocalEngine,
) -> None:
    wanted = job("fast", "make it sepia", photo(), num_steps=28, go_fast=True)
    facts = report(await collect(engine, wanted)).metrics
    assert facts["approximations"] == ["skip", "ref_kv"]
    assert (facts["model_calls"], facts["model_calls_without_references"]) == (13, 6)
    plain = report(await collect(engine, job("text", "a taxi", num_steps=28))).metrics
    assert plain["approximations"] == []
    assert plain["model_calls"] == 28
