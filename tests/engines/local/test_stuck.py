"""A device that hangs on one piece of work while its process still gives signs of life."""

from pathlib import Path

import pytest

from fluxserve.core.errors import EngineError
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.start import Setup
from fluxserve.flux.folder import embedded_folder
from tests.engines.local.test_engine import collect, job, outputs
from tests.flux.folders import make_folder


async def test_work_that_keeps_the_device_too_long_costs_the_process_and_then_its_request(
    tmp_path: Path,
) -> None:
    folder = make_folder(embedded_folder(), tmp_path / "model", "schnell")
    spool = tmp_path / "spool"
    setup = Setup(model=folder, device="cpu", threads=1, spool=spool, stuck_s=1.5)
    engine = LocalEngine("local", [setup])
    (process,) = engine.processes
    await engine.start()
    try:
        # Four megapixels in one forward: many seconds of work that nobody can interrupt.
        heavy = job("heavy", "a taxi", width=2048, height=2048, num_steps=1, num_outputs=4)
        with pytest.raises(EngineError, match="stopped 2 times while it worked on this request"):
            await collect(engine, heavy)
        assert process.deaths == 2
        light = job("light", "a taxi", width=64, height=64, num_steps=1)
        assert outputs(await collect(engine, light))
        assert process.deaths == 2
    finally:
        await engine.stop()
