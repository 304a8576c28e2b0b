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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from fluxserve.core.errors import Unavailable
from fluxserve.storage.database import Param, Rows, Transition

T = TypeVar("T")

log = logging.getLogger(__name__)

REMEMBERED_MAX = 1000  # selects of one table
WATCHED = "prediction"  # the table whose changed rows are told

Values: TypeAlias = tuple[Param, ...]


class Waiting(NamedTuple):
    """A transition, and who waits for its result."""

    transition: Transition[Any]
    future: asyncio.Future[Any]


class Answer(NamedTuple):
    """What came of a transition, once it is committed; `value` counts when `error` is None."""

    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class Broken(Exception):
    """SQLite gave up the whole transaction: disk full, I/O error."""


def drive(cursor: sqlite3.Cursor, transition: Transition[T]) -> T:
    """Feed a transition that only reads with rows until it returns; raises what it raises."""
    execute, fetch = cursor.execute, cursor.fetchall
    try:
        statement, params = next(transition)
        while True:
            sql, pick, _, _ = statement.sqlite
            execute(sql, pick(params))
            statement, params = transition.send(fetch())
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        transition.close()


class Writer:
    """The one connection that writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self._written: list[tuple[str, Values]] = []  # in this group, to be written again
        self._guarded = False  # by savepoints, since one of the group failed after it wrote
        self._remembered: dict[str, dict[tuple[str, Values], Rows]] = {}  # by table
        self.changed: list[str] = []  # ids of the predictions that the last group wrote

    def commit(self, group: Sequence[Waiting]) -> Sequence[Answer]:
        """Run `group` in one transaction; whoever fails leaves no trace, the others stand."""
        self._written.clear()
        self.changed = []
        self._guarded = False
        cursor = self._cursor
        self._roll_back()
        try:
            cursor.execute("BEGIN IMMEDIATE")
            answers = [self._answer(waiting) for waiting in group]
            cursor.execute("COMMIT")
        except (sqlite3.Error, Broken) as error:
            log.error("a commit of %d transitions failed: %s", len(group), error)
            self._remembered.clear()
            self._roll_back()
            for waiting in group:
                waiting.transition.close()
            refusal = Unavailable(f"the database cannot be written: {error}")
            return [Answer(waiting.future, None, refusal) for waiting in group]
        return answers

    def _roll_back(self) -> None:
        """Take back a whole group, if one was begun; where that fails the next tries it again."""
        try:
            if self._connection.in_transaction:
                self._cursor.execute("ROLLBACK")
        except sqlite3.Error as error:
            log.error("a rollback failed: %s", error)

    def _answer(self, waiting: Waiting) -> Answer:
        transition, future = waiting
        if self._guarded:
            self._cursor.execute("SAVEPOINT one")
        mark, changes = len(self._written), self._connection.total_changes
        try:
            answer = Answer(future, self._drive(transition), None)
        except Exception as error:
            if not self._connection.in_transaction:
                raise Broken(str(error)) from error
            if self._connection.total_changes != changes:
                del self._written[mark:]
                self._undo()
                return Answer(future, None, explained(error))
            answer = Answer(future, None, explained(error))
        if self._guarded:
            self._cursor.execute("RELEASE one")
        return answer

    def _drive(self, transition: Transition[T]) -> T:
        execute, fetch, written = self._cursor.execute, self._cursor.fetchall, self._written
        try:
            statement, params = next(transition)
            while True:
                sql, pick, writes, remembers = statement.sqlite
                values = pick(params)
                if remembers:
                    rows = self._remember(remembers, sql, values)
                else:
                    execute(sql, values)
                    rows = fetch()
                    if writes:
                        written.append((sql, values))
                        if writes in self._remembered:
                            del self._remembered[writes]
                        if writes == WATCHED:
                            self._note(params, rows)
                statement, params = transition.send(rows)
        except StopIteration as end:
            return cast(T, end.value)
        finally:
            transition.close()

    def _note(self, params: Mapping[str, Param], rows: Rows) -> None:
        named = params.get("prediction_id") or params.get("id")  # a new row has its own id
        if named is not None:
            self.changed.append(str(named))
        elif rows:
            self.changed.append(rows[0][0])

    def _remember(self, table: str, sql: str, values: Values) -> Rows:
        """The rows of a SELECT, read again only after its table was written."""
        known = self._remembered.setdefault(table, {})
        rows = known.get((sql, values))
        if rows is None:
            if len(known) >= REMEMBERED_MAX:
                known.clear()
            rows = known[sql, values] = self._cursor.execute(sql, values).fetchall()
        return rows

    def _undo(self) -> None:
        """Take back what the last transition changed."""
        cursor = self._cursor
        self._remembered.clear()
        if self._guarded:
            cursor.execute("ROLLBACK TO one")
            cursor.execute("RELEASE one")
            return
        self._guarded = True
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN IMMEDIATE")
        for sql, values in self._written:
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
