"""An engine with its linears in both forms: who asks for 8 bits has them, the others do not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from fluxserve.core.errors import EngineError
from fluxserve.core.request import Approximation
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.start import Setup
from fluxserve.flux.folder import embedded_folder
from fluxserve.settings import load
from tests.engines.local.test_engine import collect, difference, job, outputs, pixels, report

pytestmark = pytest.mark.asyncio(loop_scope="module")

FP8 = (Approximation.FP8,)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalEngine]:
    spool = tmp_path_factory.mktemp("spool")
    setup = Setup(model=embedded_folder(), device="cpu", threads=1, spool=spool, fp8="on")
    found = LocalEngine("embedded", [setup], go_fast=("skip", "fp8"))
    await found.start()
    await found.wait_ready()
    yield found
    await found.stop()


async def test_each_request_has_the_digits_it_asked_for_and_is_told(engine: LocalEngine) -> None:
    exact, rounded = await asyncio.gather(
        collect(engine, job("exact", "a red apple")),
        collect(engine, job("rounded", "a red apple", approximate=FP8)),
    )
    assert report(exact).metrics["approximations"] == []
    assert report(rounded).metrics["approximations"] == ["fp8"]
    (one,), (other,) = outputs(exact), outputs(rounded)
    assert difference(pixels(one.image), pixels(other.image)) > 1
    (alone,) = outputs(await collect(engine, job("alone", "a red apple")))
    assert difference(pixels(one.image), pixels(alone.image)) <= 1


async def test_go_fast_may_stand_for_8_bits(engine: LocalEngine) -> None:
    fast = await collect(engine, job("fast", "a taxi", num_steps=8, go_fast=True))
    assert report(fast).metrics["approximations"] == ["skip", "fp8"]


async def test_an_engine_says_what_it_can_do_before_and_when_it_is_ready(
    engine: LocalEngine, tmp_path: Path
) -> None:
    assert engine.approximations == {"skip", "ref_kv", "fp8"}

    def known(**said: str) -> frozenset[str]:
        return LocalEngine.of("embedded", load({"engine": said}).engine, tmp_path).approximations

    assert "fp8" in known(device="cuda:0")
    assert "fp8" in known(device="cpu", fp8="on")
    assert "fp8" in known(device="cpu", dtype="fp8")
    assert "fp8" not in known(device="cuda:0", fp8="off")
    assert "fp8" not in known(device="cpu")


async def test_without_8_bits_a_request_that_names_them_is_refused(tmp_path: Path) -> None:
    setup = Setup(model=embedded_folder(), device="cpu", threads=1, spool=tmp_path / "spool")
    engine = LocalEngine("embedded", [setup], go_fast=("fp8",))
    await engine.start()
    try:
        with pytest.raises(EngineError, match="approximate: embedded cannot do fp8") as caught:
            await collect(engine, job("named", "a taxi", approximate=FP8))
        assert caught.value.field == "approximate"
        fast = await collect(engine, job("fast", "a taxi", go_fast=True))
        assert report(fast).metrics["approximations"] == []
    finally:
        await engine.stop()
