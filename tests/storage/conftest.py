"""Either database, emptied, and the books on it; a test that wants one of them has its own."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Table, delete

from fluxserve.storage.database import Database, Statement, Transition
from fluxserve.storage.keys import SqlKeyStore
from fluxserve.storage.ledger import BudgetedAttemptStore, BudgetedPredictionStore, SqlMoneyStore
from fluxserve.storage.opening import open_database
from fluxserve.storage.tables import METADATA
from tests.storage.test_ledger import Books


async def empty(database: Database) -> None:
    for table in reversed(METADATA.sorted_tables):
        await database.run(_emptied(table))


def _emptied(table: Table) -> Transition[None]:
    yield Statement(delete(table))({})


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    is_sqlite = request.param == "sqlite"
    opened = open_database("sqlite://" if is_sqlite else request.getfixturevalue("postgresql"))
    await opened.start()
    await empty(opened)
    yield opened
    await opened.stop()


@pytest.fixture
def books(database: Database) -> Books:
    return Books(
        BudgetedPredictionStore(database),
        BudgetedAttemptStore(database),
        SqlMoneyStore(database),
        SqlKeyStore(database),
    )
