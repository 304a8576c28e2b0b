"""The default database: one SQLite file, one writer thread, group commit.

    run ──> queue ──> writer thread: BEGIN, (SAVEPOINT, transition, RELEASE)*, COMMIT ──> futures
    read ─> reader thread, read-only connection

Everything that waits when the writer gets to it shares one commit, and so one flush of the disk.
Nobody hears of a result before the commit that holds it. A transition that raises is rolled back
to its savepoint and fails alone.
"""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar, cast

from fluxserve.core.errors import FluxserveError, StartupError, Unavailable
from fluxserve.storage.database import Rows, Transition
from fluxserve.storage.lock import DirectoryLock
from fluxserve.storage.schema import bring_up_to_date

T = TypeVar("T")

log = logging.getLogger(__name__)

BATCH_MAX = 256  # transitions in one commit
BUSY_TIMEOUT_MS = 5_000  # for tools that look into the file by hand
STATEMENTS_CACHED = 256

WRITER_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # an answered acceptance survives a power cut
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
)
READER_PRAGMAS = ("PRAGMA query_only = ON", f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


class _Waiting(NamedTuple):
    transition: Transition[Any]
    future: asyncio.Future[Any]


class _Answer(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: BaseException | None


class SqliteDatabase:
    """`Database` on one file, or in memory when `path` is None. Used from one event loop."""

    def __init__(self, path: Path | None, *, batch_max: int = BATCH_MAX) -> None:
        self._path = path
        self._batch_max = batch_max
        self._lock = DirectoryLock(path.with_suffix(".lock")) if path else None
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._thread = threading.Thread(target=self._write, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Finish what waits, then close."""
        if self._thread:
            self._waiting.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        if self._readers:
            self._readers.shutdown()
            self._readers = None
        for connection in (self._reading, self._writing):
            if connection:
                connection.close()
        self._reading = self._writing = None
        if self._lock:
            self._lock.release()

    async def run(self, transition: Transition[T]) -> T:
        if self._thread is None or self._loop is None:
            raise Unavailable("the database is closed")
        future = self._loop.create_future()
        self._waiting.put(_Waiting(transition, future))
        return cast(T, await future)

    async def read(self, transition: Transition[T]) -> T:
        if self._readers is None or self._reading is None:
            return await self.run(transition)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, drive, self._reading, transition)

    # --- opening ---------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._lock is None:
            self._writing = _connect(":memory:", WRITER_PRAGMAS)
            bring_up_to_date(self._writing, None)
            return
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(
                f"cannot create {self._path.parent} ({error.strerror}): "
                "choose another directory with --data-dir"
            ) from error
        self._lock.acquire()
        try:
            self._writing = _connect(str(self._path), WRITER_PRAGMAS)
            bring_up_to_date(self._writing, self._path)
            self._reading = _connect(f"{self._path.as_uri()}?mode=ro", READER_PRAGMAS)
        except sqlite3.Error as error:
            self._lock.release()
            raise StartupError(
                f"{self._path} cannot be opened ({error}): "
                "restore it from a backup, or choose another directory with --data-dir"
            ) from error
        except BaseException:
            self._lock.release()
            raise
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="sqlite-reader")

    # --- the writer thread -----------------------------------------------------------------------

    def _write(self) -> None:
        assert self._writing is not None
        assert self._loop is not None
        open_ = True
        while open_:
            batch, open_ = self._next_batch()
            if batch:
                answers = commit(self._writing, batch)
                self._loop.call_soon_threadsafe(resolve, answers)

    def _next_batch(self) -> tuple[Sequence[_Waiting], bool]:
        """Wait for work, then take all that is there; False once the end was asked for."""
        batch: list[_Waiting] = []
        item = self._waiting.get()
        while item is not None:
            batch.append(item)
            if len(batch) >= self._batch_max:
                return batch, True
            try:
                item = self._waiting.get_nowait()
            except Empty:
                return batch, True
        return batch, False


def drive(connection: sqlite3.Connection, transition: Transition[T]) -> T:
    """Feed a transition with rows until it returns; raises what it raises."""
    execute = connection.execute
    try:
        statement, params = next(transition)
        while True:
            sql, pick = statement.sqlite
            rows: Rows = execute(sql, pick(params)).fetchall()
            statement, params = transition.send(rows)
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        transition.close()


def commit(connection: sqlite3.Connection, batch: Sequence[_Waiting]) -> Sequence[_Answer]:
    """Run `batch` in one transaction; whoever fails leaves no trace, the others stand."""
    execute = connection.execute
    answers: list[_Answer] = []
    try:
        execute("BEGIN IMMEDIATE")
        for transition, future in batch:
            execute("SAVEPOINT one")
            try:
                answers.append(_Answer(future, drive(connection, transition), None))
            except Exception as error:
                if not connection.in_transaction:
                    raise  # SQLite gave up the whole transaction: disk full, I/O error
                execute("ROLLBACK TO one")
                answers.append(_Answer(future, None, _explained(error)))
            execute("RELEASE one")
        execute("COMMIT")
    except sqlite3.Error as error:
        log.error("a commit of %d transitions failed: %s", len(batch), error)
        if connection.in_transaction:
            execute("ROLLBACK")
        refusal = _explained(error)
        return [_Answer(future, None, refusal) for _, future in batch]
    return answers


def resolve(answers: Sequence[_Answer]) -> None:
    for future, value, error in answers:
        if future.done():  # its waiter was cancelled; the row stands
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _explained(error: Exception) -> Exception:
    if isinstance(error, FluxserveError) or not isinstance(error, sqlite3.OperationalError):
        return error
    return Unavailable(f"the database cannot be written: {error}")


def _connect(name: str, pragmas: Sequence[str]) -> sqlite3.Connection:
    connection = sqlite3.connect(
        name,
        uri=name.startswith("file:"),
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENTS_CACHED,
    )
    for pragma in pragmas:
        connection.execute(pragma)
    return connection
