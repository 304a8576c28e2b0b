"""When the disk lets SQLite down, everybody in the group hears of it and nothing is half done."""

import asyncio
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert, select

from fluxserve.core.errors import Conflict, Unavailable
from fluxserve.storage import tables
from fluxserve.storage.database import Statement, Transition
from fluxserve.storage.groupcommit import Answer, Waiting, Writer, resolve
from fluxserve.storage.schema import ddl

INSERT = Statement(insert(tables.meta))


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    for statement in ddl():
        opened.execute(statement)
    yield opened
    opened.close()


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def write(name: str, value: str = "", then: Exception | None = None) -> Transition[str]:
    yield INSERT({"name": name, "value": value})
    if then:
        raise then
    return name


def group(loop: asyncio.AbstractEventLoop, *work: Transition[Any]) -> list[Waiting]:
    return [Waiting(one, loop.create_future()) for one in work]


def names(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM meta ORDER BY name")]


def kinds(answers: list[Answer]) -> list[type | None]:
    return [type(one.error) if one.error else None for one in answers]


async def test_a_full_disk_fails_the_group_whole(
    connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop
) -> None:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    work = group(loop, write("a"), write("big", "x" * 100_000), write("b"))
    answers = list(Writer(connection).commit(work))
    assert set(kinds(answers)) == {Unavailable}
    assert not connection.in_transaction
    assert names(connection) == []
    assert kinds(list(Writer(connection).commit(group(loop, write("a"))))) == [None]


async def test_a_commit_that_fails_fails_the_group_whole(
    connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop
) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("CREATE TABLE parent (id PRIMARY KEY)")
    connection.execute("CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    connection.execute(
        "CREATE TRIGGER broken AFTER INSERT ON meta BEGIN INSERT INTO child VALUES (1); END"
    )
    assert kinds(list(Writer(connection).commit(group(loop, write("a"), write("b"))))) == [
        Unavailable,
        Unavailable,
    ]
    assert names(connection) == []


async def test_several_late_failures_leave_the_good_ones(
    connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop
) -> None:
    no = Conflict("no")
    work = group(loop, write("a"), write("x", then=no), write("b"), write("y", then=no), write("c"))
    answers = list(Writer(connection).commit(work))
    assert kinds(answers) == [None, Conflict, None, Conflict, None]
    assert names(connection) == ["a", "b", "c"]


async def test_a_waiter_that_left_is_not_woken(
    connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop
) -> None:
    work = group(loop, write("a"), write("b"))
    work[0].future.cancel()
    resolve(Writer(connection).commit(work))
    assert await work[1].future == "b"


SAVED = Statement(select(tables.meta.c.value).order_by(tables.meta.c.name), remembers="meta")


def look(then: Exception | None = None) -> Transition[list[str]]:
    rows = yield SAVED({})
    if then:
        raise then
    return [row[0] for row in rows]


async def test_what_is_remembered_is_read_again_once_its_table_was_written(
    connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop
) -> None:
    writer = Writer(connection)
    reads: list[str] = []
    connection.set_trace_callback(lambda sql: reads.append(sql) if "SELECT" in sql else None)

    def values(*work: Transition[Any]) -> list[Any]:
        return [answer.value for answer in writer.commit(group(loop, *work))]

    assert values(look(), look()) == [[], []]
    assert values(look()) == [[]]
    assert len(reads) == 1
    assert values(write("a", "1"), look(), look()) == ["a", ["1"], ["1"]]
    assert len(reads) == 2


async def test_what_was_undone_is_not_remembered(
    connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop
) -> None:
    writer = Writer(connection)

    def write_and_look() -> Transition[str]:
        yield INSERT({"name": "x", "value": "bad"})
        yield from look(then=Conflict("no"))
        return ""

    answers = writer.commit(group(loop, look(), write_and_look(), look()))
    assert [answer.value for answer in answers] == [[], None, []]
    assert kinds(list(answers)) == [None, Conflict, None]
    connection.execute("PRAGMA query_only = ON")
    assert kinds(list(writer.commit(group(loop, write("b"))))) == [Unavailable]


async def test_a_rollback_that_fails_does_not_end_the_writer(
    connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop
) -> None:
    writer = Writer(connection)

    def refuse(action: int, what: str | None, *_: object) -> int:
        is_end = action == sqlite3.SQLITE_TRANSACTION and what in ("COMMIT", "ROLLBACK")
        return sqlite3.SQLITE_DENY if is_end else sqlite3.SQLITE_OK

    connection.set_authorizer(refuse)
    assert kinds(list(writer.commit(group(loop, write("a"))))) == [Unavailable]
    assert kinds(list(writer.commit(group(loop, write("b"))))) == [Unavailable]
    connection.set_authorizer(None)
    assert kinds(list(writer.commit(group(loop, write("c"))))) == [None]
    assert names(connection) == ["c"]
