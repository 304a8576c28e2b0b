"""A whole house on the simulator, a client of it, a real server process, a clock that is told."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve import settings as setting
from fluxserve.app import House
from fluxserve.asgi import create_app
from fluxserve.settings import Settings
from tests.server import ServerProcess
from tests.system.fixtures import bucket, postgresql, s3

__all__ = ["bucket", "postgresql", "s3"]


class ToldClock:
    """Says what it was told, and moves only when it is."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@pytest.fixture
def clock() -> ToldClock:
    return ToldClock()


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a quick simulator in a folder of its own; keyword arguments are sections."""

    def make(**sections: Any) -> Settings:
        simulator = {"enabled": True, "seconds": 0.02, "steps": 2, **sections.pop("simulator", {})}
        flags = {"data_dir": str(tmp_path / "data"), "simulator": simulator, **sections}
        return setting.load(flags, environ={})

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
async def house(settings: Settings) -> AsyncIterator[House]:
    """Started, on the simulator; override the `settings` fixture for another one."""
    house = House(settings)
    await house.start()
    yield house
    await house.stop()


@pytest.fixture
async def http(house: House) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to the house without a socket; answers are whole, so no event streams."""
    transport = httpx.ASGITransport(create_app(house))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts real server processes on the simulator; stops what is still running at the end."""
    running: list[ServerProcess] = []

    def start(*words: str, data_dir: Path | None = None, **environ: str) -> ServerProcess:
        quick = {
            "FLUXSERVE_SIMULATOR__ENABLED": "true",
            "FLUXSERVE_SIMULATOR__SECONDS": "0.05",
            "FLUXSERVE_SIMULATOR__STEPS": "2",
            **environ,
        }
        server = ServerProcess(data_dir or tmp_path / "server", *words, environ=quick)
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()
