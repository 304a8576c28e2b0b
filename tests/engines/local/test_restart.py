"""Starts that fail: final before the engine was ever ready, tried on afterwards."""

from pathlib import Path

import pytest

from fluxserve.core.errors import EngineError
from fluxserve.engines.local import process
from fluxserve.engines.local.wire import Refused
from tests.engines.local.stage import READY, played


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "BACKOFF_S", (0.0,))


async def test_an_engine_that_was_ready_is_started_until_it_is_ready_again(tmp_path: Path) -> None:
    async with played(tmp_path) as (engine, stage):
        first = await stage.entrances.get()
        await first.say(READY)
        await engine.wait_ready()
        await first.aclose()
        for _ in range(2):
            again = await stage.entrances.get()
            await again.say(Refused(message="needs 46.3 GiB on cuda, 40.0 GiB are free"))
            await again.aclose()
        last = await stage.entrances.get()
        assert "40.0 GiB are free" in (engine.trouble or "")
        await last.say(READY)
        await engine.wait_ready()
        assert engine.trouble is None
        await last.aclose()
        await stage.entrances.get()
        assert "is being loaded" in (engine.trouble or "")


async def test_an_engine_that_never_was_ready_is_refused_for_good(tmp_path: Path) -> None:
    async with played(tmp_path) as (engine, stage):
        first = await stage.entrances.get()
        await first.say(Refused(message="device: this machine has no usable cuda"))
        await first.aclose()
        with pytest.raises(EngineError, match="no usable cuda"):
            await engine.wait_ready()
        assert engine.trouble == "device: this machine has no usable cuda"
        assert stage.entrances.empty()
