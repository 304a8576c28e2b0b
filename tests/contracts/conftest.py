"""Each port runs its suite over every implementation; another database is one more branch here."""

from collections.abc import AsyncIterator, Callable
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


@pytest.fixture(params=["sqlite-memory", "sqlite-file", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    match request.param:
        case "sqlite-memory":
            url = "sqlite://"
        case "sqlite-file":
            url = f"sqlite:///{tmp_path}/store.db"
        case _:
            url = request.getfixturevalue("postgresql")
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


@pytest.fixture(params=["memory", "local", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Blobs:
    match request.param:
        case "memory":
            return open_blobs("memory://", clock)
        case "local":
            return open_blobs((tmp_path / "blobs").as_uri(), clock)
        case _:
            bucket: Callable[[], str] = request.getfixturevalue("bucket")
            return open_blobs(f"{bucket()}/a prefix", clock)
