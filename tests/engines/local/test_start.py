"""Engine processes that are there before the server: who starts them, takes them, ends them."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import StartupError
from fluxserve.engines import early
from fluxserve.engines.choose import choose_engines
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.process import EngineProcess
from fluxserve.engines.local.start import Early, Setup, setups_of
from fluxserve.flux.folder import embedded_folder
from fluxserve.settings import Settings, load

PAID = {"name": "paid", "kind": "bfl", "base_url": "https://bfl.test", "key_env": "KEY"}
ROUTE = {"model": "fluxserve/embedded", "engine": "embedded"}
WISHES: dict[str, Mapping[str, Any]] = {
    "nothing": {},
    "a simulator": {"simulator": {"enabled": True}},
    "an upstream": {"upstream": [PAID]},
    "an upstream and a route": {"upstream": [PAID], "route": [ROUTE]},
    "weights": {"engine": {"model_dir": str(embedded_folder())}},
    "weights and a route": {"engine": {"model_dir": str(embedded_folder())}, "route": [ROUTE]},
    "two devices": {"engine": {"device": "cpu, cpu", "threads": 1}},
}


def settings_of(folder: Path, wish: str) -> Settings:
    return load({**WISHES[wish], "data_dir": str(folder)}, environ={})


@pytest.mark.parametrize("wish", WISHES)
def test_those_begin_early_that_the_server_will_want(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    monkeypatch.setenv("KEY", "secret")
    settings = settings_of(tmp_path, wish)
    choice = choose_engines(settings, Catalog(CARDS, lambda: 1))
    wanted = {
        engine.name: [process.setup for process in engine.processes]
        for engine in choice.engines
        if isinstance(engine, LocalEngine)
    }
    names = early.local_engines(settings)
    assert {name: setups_of(name, settings.engine, settings.data) for name in names} == wanted


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(model=embedded_folder(), device="cpu", threads=1, spool=tmp_path / "spool")


@pytest.fixture
def begun(setup: Setup) -> Iterator[Early]:
    with closing(Early([setup])) as found:
        yield found


def children(setup: Setup) -> list[int]:
    """Processes of this setup that are alive."""
    return [
        process.pid
        for process in psutil.Process().children()
        if str(setup.spool) in words_of(process)
    ]


def words_of(process: psutil.Process) -> list[str]:
    """How it was called; none of a dead one. Between fork and exec there is nothing to read yet."""
    while process.status() != psutil.STATUS_ZOMBIE:
        if words := process.cmdline():
            return list(words)
    return []


def test_what_nobody_took_is_gone_when_the_start_is_over(begun: Early, setup: Setup) -> None:
    assert len(children(setup)) == 1
    begun.close()
    assert children(setup) == []
    assert begun.take(setup) is None


async def test_a_process_is_taken_once_and_does_the_work(begun: Early, setup: Setup) -> None:
    (pid,) = children(setup)
    process = EngineProcess(setup, begun)
    await process.start()
    try:
        async with asyncio.timeout(60):
            await process.wait_ready()
        assert process.pid == pid
        assert begun.take(setup) is None
    finally:
        await process.stop()
    assert children(setup) == []


async def test_one_that_died_before_it_was_taken_is_replaced(begun: Early, setup: Setup) -> None:
    (pid,) = children(setup)
    psutil.Process(pid).kill()
    process = EngineProcess(setup, begun)
    await process.start()
    try:
        async with asyncio.timeout(60):
            await process.wait_ready()
        assert process.pid != pid
        assert process.deaths == 1
    finally:
        await process.stop()


def test_another_setup_takes_nothing(begun: Early, setup: Setup, tmp_path: Path) -> None:
    other = Setup(model=embedded_folder(), device="cpu", spool=tmp_path / "other")
    assert begun.take(other) is None
    assert len(children(setup)) == 1


def test_a_house_that_cannot_be_opened_leaves_no_process(tmp_path: Path) -> None:
    settings = load({"engine": {"model_dir": str(tmp_path)}, "data_dir": str(tmp_path)}, environ={})
    with closing(early.begin(settings)) as begun, pytest.raises(StartupError):
        choose_engines(settings, Catalog(CARDS, lambda: 1), begun)
    (setup,) = setups_of("local", settings.engine, settings.data)
    assert children(setup) == []
