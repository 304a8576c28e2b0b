"""The SQLite database: one holder, durable settings, troubles in plain words."""

import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import bindparam, insert, select, text

from fluxserve.core.errors import StartupError, Unavailable
from fluxserve.storage import tables
from fluxserve.storage.database import Statement, Transition
from fluxserve.storage.lock import is_held
from fluxserve.storage.sqlite import SqliteDatabase

INSERT = Statement(insert(tables.meta))
NAMES = Statement(select(tables.meta.c.name).order_by(tables.meta.c.name))
NONSENSE = Statement(select(text("1")).select_from(text("nowhere")))
PRAGMAS = Statement(
    select(text("journal_mode"), text("(SELECT synchronous FROM pragma_synchronous)")).select_from(
        text("pragma_journal_mode")
    )
)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "store.db")
    await opened.start()
    yield opened
    await opened.stop()


def write(name: str) -> Transition[None]:
    yield INSERT({"name": name, "value": ""})


def rows(statement: Statement) -> Transition[list[tuple[object, ...]]]:
    return list((yield statement({})))


async def test_a_second_writer_is_told_who_holds_the_directory(
    database: SqliteDatabase, tmp_path: Path
) -> None:
    second = SqliteDatabase(tmp_path / "store.db")
    with pytest.raises(StartupError, match=f"in use by process {os.getpid()}: stop that one"):
        await second.start()


async def test_a_directory_is_free_again_after_a_stop(tmp_path: Path) -> None:
    for name in "ab":
        database = SqliteDatabase(tmp_path / "store.db")
        await database.start()
        await database.run(write(name))
        await database.stop()
    assert not (tmp_path / "store.db-wal").exists(), "closing folds the log into the file"


async def test_whether_a_directory_is_held_can_be_asked(tmp_path: Path) -> None:
    lock = tmp_path / "store.lock"
    assert not is_held(lock)
    database = SqliteDatabase(tmp_path / "store.db")
    await database.start()
    assert is_held(lock)
    await database.stop()
    assert not is_held(lock)


async def test_a_failed_start_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is no database" * 100)
    for _ in range(2):
        with pytest.raises(StartupError, match="cannot be opened"):
            await SqliteDatabase(tmp_path / "store.db").start()


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match=r"cannot create .*file/data"):
        await SqliteDatabase(tmp_path / "file" / "data" / "store.db").start()


async def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.lock").mkdir()
    with pytest.raises(StartupError, match="cannot write to"):
        await SqliteDatabase(tmp_path / "store.db").start()


async def test_a_commit_is_on_the_disk_before_it_is_answered(database: SqliteDatabase) -> None:
    assert await database.run(rows(PRAGMAS)) == [("wal", 2)]  # 2: FULL


async def test_reads_cannot_write(database: SqliteDatabase) -> None:
    with pytest.raises(Unavailable):
        await database.read(write("a"))
    with pytest.raises(Unavailable):
        await database.scan(write("a"))


async def test_a_bad_statement_fails_alone(database: SqliteDatabase) -> None:
    with pytest.raises(Unavailable):
        await database.run(rows(NONSENSE))
    await database.run(write("a"))


async def test_what_waits_at_the_stop_is_still_written(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    database = SqliteDatabase(path, batch_max=2)
    await database.start()
    waiting = [database.run(write(name)) for name in "abcde"]
    for one in waiting:
        one.send(None)  # hand it over, wait for nothing
    await database.stop()
    for one in waiting:
        one.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM meta").fetchone() == (5,)
    connection.close()


async def test_the_writer_thread_ends_with_the_database(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "store.db")
    await database.start()
    await database.stop()
    await database.stop()
    assert not [one for one in threading.enumerate() if one.name.startswith("sqlite-")]


async def test_values_of_the_construct_and_of_the_call_mix(database: SqliteDatabase) -> None:
    for name in "abc":
        await database.run(write(name))
    meta = tables.meta.c
    some = Statement(
        select(meta.name)
        .where(meta.name > bindparam("above"), meta.value == "")
        .order_by(meta.name)
        .limit(1)
    )

    def first(above: str) -> Transition[str]:
        found = yield some({"above": above})
        return str(found[0][0])

    assert await database.read(first("a")) == "b"
    assert await database.read(first("b")) == "c"
    assert await database.read(rows(NAMES)) == [("a",), ("b",), ("c",)]
