"""The default database: one SQLite file, one writer thread, group commit.

    run ──> queue ──> writer thread, one commit for all that waits ──> futures
    read ─> here and now, on a read-only connection of the event loop
    scan ─> reader thread, another read-only connection

Nobody hears of a result before the commit that holds it is on the disk. A read by key takes some
ten microseconds, a hand-over to a thread and back ten times that and, when the loop is busy, a
thousand times: so small reads stay on the loop. (bench/store.py)
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

from fluxserve.core.errors import StartupError, Unavailable
from fluxserve.storage.database import Call, Rows, Transition
from fluxserve.storage.flushing import flush
from fluxserve.storage.groupcommit import Answer, Waiting, Writer, drive, explained, resolve
from fluxserve.storage.lock import DirectoryLock
from fluxserve.storage.schema import bring_up_to_date

T = TypeVar("T")

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


class SqliteDatabase:
    """`Database` on one file, or in memory when `path` is None. Used from one event loop."""

    def __init__(self, path: Path | None, *, batch_max: int = BATCH_MAX) -> None:
        self._path = path
        self._batch_max = batch_max
        self._lock: DirectoryLock | None = None
        self._asked: list[Waiting] = []  # in this turn of the loop
        self._waiting: SimpleQueue[list[Waiting] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scanner: ThreadPoolExecutor | None = None
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._scanning: sqlite3.Connection | None = None
        self._watchers: list[Callable[[str], None]] = []

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)
        self._thread = threading.Thread(target=self._write, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Finish what waits, then close."""
        thread, self._thread = self._thread, None
        if thread:
            self._hand_over()
            self._waiting.put(None)
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._close)

    def watch(self, changed: Callable[[str], None]) -> bool:
        """The lock keeps every other writer out. In memory even reads wait for the writer: what
        they bring may be old by the time it is looked at."""
        self._watchers.append(changed)
        return self._path is not None

    async def run(self, transition: Transition[T]) -> T:
        if self._thread is None or self._loop is None:
            raise Unavailable("the database is closed")
        future = self._loop.create_future()
        if not self._asked:
            self._loop.call_soon(self._hand_over)
        self._asked.append(Waiting(transition, future))
        return cast(T, await future)

    def _hand_over(self) -> None:
        """Give the writer all that one turn of the loop has asked for: waking it costs."""
        asked, self._asked = self._asked, []
        if asked:
            self._waiting.put(asked)

    async def fetch(self, call: Call) -> Rows:
        if self._reading is None:
            return await self.run(_fetched(call))
        sql, pick, _, _ = call.statement.sqlite
        try:
            return self._reading.execute(sql, pick(call.params)).fetchall()
        except sqlite3.Error as error:
            raise explained(error) from error

    async def read(self, transition: Transition[T]) -> T:
        if self._reading is None:
            return await self.run(transition)
        return _read(self._reading, transition)

    async def scan(self, transition: Transition[T]) -> T:
        if self._scanner is None or self._scanning is None:
            return await self.run(transition)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._scanner, _read, self._scanning, transition)

    # --- opening ---------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._path is None:
            self._writing = _connect(":memory:", WRITER_PRAGMAS)
            bring_up_to_date(self._writing, None)
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(
                f"cannot create {self._path.parent} ({error.strerror}): "
                "choose another directory with --data-dir"
            ) from error
        try:
            self._open_file(self._path)
        except (sqlite3.Error, OSError) as error:
            self._close()
            raise StartupError(
                f"{self._path} cannot be opened ({error}): "
                "restore it from a backup, or choose another directory with --data-dir"
            ) from error
        except StartupError:
            self._close()
            raise

    def _open_file(self, path: Path) -> None:
        self._lock = DirectoryLock(path.with_suffix(".lock"))
        self._lock.acquire()
        self._writing = _connect(str(path), WRITER_PRAGMAS)
        bring_up_to_date(self._writing, path)
        read_only = f"{path.as_uri()}?mode=ro"
        self._reading = _connect(read_only, READER_PRAGMAS)
        self._scanning = _connect(read_only, READER_PRAGMAS)
        self._scanner = ThreadPoolExecutor(1, thread_name_prefix="sqlite-reader")
        flush(path.parent)

    def _close(self) -> None:
        if self._scanner:
            self._scanner.shutdown()
        # The writer last: closing it folds the log into the file, which readers would forbid.
        for connection in (self._reading, self._scanning, self._writing):
            if connection:
                connection.close()
        if self._lock:
            self._lock.release()
        self._scanner = self._lock = None
        self._reading = self._scanning = self._writing = None

    # --- the writer thread -----------------------------------------------------------------------

    def _write(self) -> None:
        assert self._writing is not None
        assert self._loop is not None
        writer, open_ = Writer(self._writing), True
        while open_:
            batch, open_ = self._next_batch()
            for start in range(0, len(batch), self._batch_max):
                answers = writer.commit(batch[start : start + self._batch_max])
                self._loop.call_soon_threadsafe(self._tell, writer.changed, answers)

    def _tell(self, changed: Sequence[str], answers: Sequence[Answer]) -> None:
        for watcher in self._watchers:
            for prediction_id in changed:
                watcher(prediction_id)
        resolve(answers)

    def _next_batch(self) -> tuple[Sequence[Waiting], bool]:
        """Wait for work, then take all that is there; False once the end was asked for."""
        batch: list[Waiting] = []
        item = self._waiting.get()
        while item is not None:
            batch += item
            if len(batch) >= self._batch_max:
                return batch, True
            try:
                item = self._waiting.get_nowait()
            except Empty:
                return batch, True
        return batch, False


def _fetched(call: Call) -> Transition[Rows]:
    return (yield call)


def _read(connection: sqlite3.Connection, transition: Transition[T]) -> T:
    try:
        return drive(connection.cursor(), transition)
    except sqlite3.Error as error:
        raise explained(error) from error


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
