"""Each port runs its suite over every implementation; another database is one more branch here."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from fluxserve.storage.blobs import Blobs, open_blobs
from fluxserve.storage.database import Database
from fluxserve.storage.deliveries import SqlDeliveryStore
from fluxserve.storage.files import SqlFileStore
from fluxserve.storage.keys import SqlKeyStore
from fluxserve.storage.opening import open_database
from fluxserve.storage.predictions import SqlPredictionStore
from tests.contracts.material import NOW


class Clock:
    """Tells the time it was told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite-memory", "sqlite-file"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = "sqlite://" if request.param == "sqlite-memory" else f"sqlite:///{tmp_path}/store.db"
    opened = open_database(url)
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
def store(database: Database) -> SqlPredictionStore:
    return SqlPredictionStore(database)


@pytest.fixture
def deliveries(database: Database) -> SqlDeliveryStore:
    return SqlDeliveryStore(database)


@pytest.fixture
def keys(database: Database) -> SqlKeyStore:
    return SqlKeyStore(database)


@pytest.fixture
def files(database: Database, clock: Clock) -> SqlFileStore:
    return SqlFileStore(database, clock)


@pytest.fixture(params=["memory", "local"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return open_blobs("memory://" if request.param == "memory" else (tmp_path / "blobs").as_uri())
