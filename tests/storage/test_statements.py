"""Every statement compiles for both databases, and the ones that run often use an index."""

import importlib
import pkgutil
import sqlite3
from collections.abc import Iterator

import pytest

from fluxserve.core.ports import Query
from fluxserve.storage import accept, deliveries, predictions, schema, transitions
from fluxserve.storage import files as files_room
from fluxserve.storage import keys as keys_room
from fluxserve.storage.database import Statement

import fluxserve.storage  # isort: skip


def statements() -> Iterator[tuple[str, Statement]]:
    for module in pkgutil.iter_modules(fluxserve.storage.__path__, "fluxserve.storage."):
        if not module.ispkg:
            room = importlib.import_module(module.name)
            for name, value in vars(room).items():
                if isinstance(value, Statement):
                    yield f"{module.name.rpartition('.')[2]}.{name}", value


ALL = dict(statements())


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:")
    for statement in schema.ddl():
        opened.execute(statement)
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ALL)
def test_a_statement_is_valid_on_sqlite_and_compiles_for_postgresql(
    name: str, connection: sqlite3.Connection
) -> None:
    compiled = ALL[name].sqlite
    connection.execute(f"EXPLAIN {compiled.sql}", [None] * compiled.sql.count("?"))
    assert ALL[name].postgresql.writes == compiled.writes


def plan(connection: sqlite3.Connection, statement: Statement) -> str:
    sql = statement.sqlite.sql
    rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?"))
    return " / ".join(row[3] for row in rows)


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (transitions.CLAIM, "ix_prediction_queued"),
        (accept.COUNT_QUEUED, "ix_prediction_queued"),
        (accept.COUNT_UNFINISHED, "ix_prediction_unfinished"),
        (accept.SAME_NAME, "sqlite_autoindex_prediction_2"),
        (predictions.AHEAD, "ix_prediction_queued"),
        (predictions.EXPIRED, "ix_prediction_lease"),
        (predictions.OVERDUE, "ix_prediction_deadline"),
        (transitions.STRIPPABLE, "ix_prediction_strip"),
        (transitions.PURGEABLE, "ix_prediction_created"),
        (transitions.FORGET_USES, "ix_blob_use_owner"),
        (deliveries.CLAIM, "ix_delivery_due"),
        (deliveries.NEXT_DUE, "ix_delivery_due"),
        (files_room.EXPIRED, "ix_file_expires"),
        (keys_room.FIND, "sqlite_autoindex_api_key_2"),
        (predictions._page_statement(frozenset(), 0, 0), "ix_prediction_created"),
        (predictions._page_statement(frozenset({"key", "seen_at"}), 0, 0), "ix_prediction_key"),
    ],
)
def test_a_frequent_statement_uses_its_index_and_sorts_nothing(
    connection: sqlite3.Connection, statement: Statement, index: str
) -> None:
    found = plan(connection, statement)
    assert index in found
    assert "TEMP B-TREE" not in found


def test_statements_of_lists_are_kept_per_shape() -> None:
    predictions._page_statement.cache_clear()
    for name in "abc":
        drained = predictions._page(Query(key_id=name))
        next(drained)
        drained.close()
    assert predictions._page_statement.cache_info().misses == 1
