"""Group commit on SQLite: many transitions, one transaction, one flush of the disk.

    BEGIN ─> transition ─> transition ─> ... ─> COMMIT ─> answers

A transition that raises fails alone. Most do so before they change anything, so the good ones pay
for no savepoints: when one raises after it changed something, everything is rolled back, what the
earlier ones wrote is written again (SQL without chance or clock, from the same start, so with the
same result), and savepoints guard the rest of this group.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast

from fluxserve.core.errors import Unavailable
from fluxserve.storage.database import Param, Transition

T = TypeVar("T")

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A transition, and who waits for its result."""

    transition: Transition[Any]
    future: asyncio.Future[Any]


class Answer(NamedTuple):
    """What came of a transition, once it is committed; `value` counts when `error` is None."""

    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


Written = list[tuple[str, tuple[Param, ...]]]  # what was written so far, to be written again


class Broken(Exception):
    """SQLite gave up the whole transaction: disk full, I/O error."""


def drive(cursor: sqlite3.Cursor, transition: Transition[T], written: Written | None = None) -> T:
    """Feed a transition with rows until it returns; raises what it raises."""
    execute, fetch = cursor.execute, cursor.fetchall
    try:
        statement, params = next(transition)
        while True:
            sql, pick, writes = statement.sqlite
            values = pick(params)
            execute(sql, values)
            rows = fetch()
            if writes and written is not None:
                written.append((sql, values))
            statement, params = transition.send(rows)
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        transition.close()


def commit(connection: sqlite3.Connection, group: Sequence[Waiting]) -> Sequence[Answer]:
    """Run `group` in one transaction; whoever fails leaves no trace, the others stand."""
    cursor = connection.cursor()
    try:
        cursor.execute("BEGIN IMMEDIATE")
        answers = _run(connection, cursor, group)
        cursor.execute("COMMIT")
    except (sqlite3.Error, Broken) as error:
        log.error("a commit of %d transitions failed: %s", len(group), error)
        if connection.in_transaction:
            cursor.execute("ROLLBACK")
        for waiting in group:
            waiting.transition.close()
        refusal = Unavailable(f"the database cannot be written: {error}")
        return [Answer(waiting.future, None, refusal) for waiting in group]
    return answers


def _run(
    connection: sqlite3.Connection, cursor: sqlite3.Cursor, group: Sequence[Waiting]
) -> list[Answer]:
    written: Written = []
    guarded = False  # by savepoints, since one failed after it wrote
    answers: list[Answer] = []
    for transition, future in group:
        if guarded:
            cursor.execute("SAVEPOINT one")
        mark, changes = len(written), connection.total_changes
        try:
            answers.append(Answer(future, drive(cursor, transition, written), None))
        except Exception as error:
            answers.append(Answer(future, None, explained(error)))
            if not connection.in_transaction:
                raise Broken(str(error)) from error
            if connection.total_changes != changes:
                del written[mark:]
                _undo(cursor, written, guarded)
                guarded = True
                continue
        if guarded:
            cursor.execute("RELEASE one")
    return answers


def _undo(cursor: sqlite3.Cursor, written: Written, guarded: bool) -> None:
    """Take back what the last transition changed."""
    if guarded:
        cursor.execute("ROLLBACK TO one")
        cursor.execute("RELEASE one")
        return
    cursor.execute("ROLLBACK")
    cursor.execute("BEGIN IMMEDIATE")
    for sql, values in written:
        cursor.execute(sql, values)
        cursor.fetchall()


def resolve(answers: Sequence[Answer]) -> None:
    """Wake the waiters; runs on their event loop."""
    for future, value, error in answers:
        if future.done():  # its waiter was cancelled; what was written stands
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def explained(error: Exception) -> Exception:
    """The database's own troubles in words for the caller; everything else as it is."""
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable(f"the database does not answer: {error}")
    return error
