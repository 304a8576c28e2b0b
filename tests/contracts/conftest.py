"""Each port runs its suite over every implementation; another database is one more branch here."""

import os
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Table, delete

from fluxserve.storage.blobs import Blobs, open_blobs
from fluxserve.storage.database import Database, Statement, Transition
from fluxserve.storage.deliveries import SqlDeliveryStore
from fluxserve.storage.files import SqlFileStore
from fluxserve.storage.keys import SqlKeyStore
from fluxserve.storage.opening import open_database
from fluxserve.storage.predictions import SqlPredictionStore
from fluxserve.storage.tables import METADATA
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


# An empty database that the tests may fill, e.g. postgresql://user@127.0.0.1:5432/test
POSTGRESQL = os.environ.get("FLUXSERVE_TEST_POSTGRESQL")
DATABASES = ["sqlite-memory", "sqlite-file", *(["postgresql"] if POSTGRESQL else [])]


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    match request.param:
        case "sqlite-memory":
            url = "sqlite://"
        case "sqlite-file":
            url = f"sqlite:///{tmp_path}/store.db"
        case _:
            url = POSTGRESQL or ""
    opened = open_database(url)
    await opened.start()
    for table in reversed(METADATA.sorted_tables):
        await opened.run(emptied(table))
    yield opened
    await opened.stop()


def emptied(table: Table) -> Transition[None]:
    yield Statement(delete(table))({})


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
