"""What does it cost to accept a prediction durably, and to read it back?

Accepts: predictions with their first event, through the store (one writer thread, group commit)
at several numbers of callers, against the plainest durable way: the same two rows by stdlib
sqlite3, one commit each, no store around it. All with synchronous=FULL in the same directory,
rounds interleaved. Reads: by key on the event loop as the store does, of ever new rows and of one
that is polled, against handing the same read to a thread.

    python -m bench.store [--dir DIRECTORY] [--rounds 5] [--accepts 2000]
"""

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fluxserve.core.events import Event, EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import ImageRequest, Origin, Task
from fluxserve.storage.accept import INSERT
from fluxserve.storage.opening import open_database
from fluxserve.storage.predictions import SqlPredictionStore
from fluxserve.storage.records import encode_event, encode_prediction
from fluxserve.storage.sqlite import WRITER_PRAGMAS, SqliteDatabase
from fluxserve.storage.transitions import INSERT_EVENT
from fluxserve.storage.transitions import get as get_row

CALLERS = (1, 16, 64, 256)
QUEUE_MAX = 10_000_000  # checked on every accept, as the service does
PROMPT = "Make the fox wear a red scarf and let it snow, keep everything else as it is. "


@dataclass
class Row:
    """The rounds of one way of doing it."""

    name: str
    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # of the whole process
    writer_us: list[float] = field(default_factory=list)  # of the writer thread alone

    def line(self) -> str:
        def shown(values: list[float]) -> str:
            if not values:
                return f"{'':>21}"
            low, high = min(values), max(values)
            return f"{statistics.median(values):8.0f} ({low:.0f}-{high:.0f})".ljust(21)

        return f"{self.name:<34}{shown(self.per_s)}{shown(self.cpu_us)}{shown(self.writer_us)}"

    def medians(self) -> dict[str, float]:
        named = {"per_s": self.per_s, "cpu_us": self.cpu_us, "writer_us": self.writer_us}
        return {name: round(statistics.median(v), 1) for name, v in named.items() if v}


def prediction(seed: int) -> Prediction:
    """As a Replicate client would send it: about 1 kB in the row."""
    model = "black-forest-labs/flux-kontext-dev"
    request = ImageRequest(
        model=model,
        task=Task.TEXT_TO_IMAGE,
        prompt=PROMPT * 2,
        width=1024,
        height=1024,
        num_steps=28,
        guidance=2.5,
        seed=seed,
    )
    origin = Origin(
        dialect="replicate",
        model_name=model,
        key_id="0" * 32,
        base_url="http://localhost:8000",
        mount="/replicate/v1",
        said={"prompt": PROMPT * 2, "seed": seed, "output_format": "png"},
    )
    return Prediction(
        id=new_id(), request=request, origin=origin, engine="local", created_at=datetime.now(UTC)
    )


def queued(one: Prediction) -> Event:
    return Event(prediction_id=one.id, kind=EventKind.QUEUED, at=one.created_at, seq=1)


def writer_clock() -> Callable[[], float]:
    """CPU seconds of the writer thread so far."""
    (thread,) = (one for one in threading.enumerate() if one.name == "sqlite-writer")
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    return lambda: time.clock_gettime(clock)


async def accept(store: SqlPredictionStore, callers: int, row: Row, accepts: int) -> None:
    """`callers` at once, each waiting for its answer before it sends the next."""
    waiting = iter([prediction(seed) for seed in range(accepts)])
    writer = writer_clock()

    async def caller() -> None:
        for one in waiting:
            await store.add(one, queued(one), queue_max=QUEUE_MAX)

    wall, cpu, writing = time.perf_counter(), time.process_time(), writer()
    await asyncio.gather(*(caller() for _ in range(callers)))
    row.per_s.append(accepts / (time.perf_counter() - wall))
    row.cpu_us.append((time.process_time() - cpu) / accepts * 1e6)
    row.writer_us.append((writer() - writing) / accepts * 1e6)


def accept_plainly(connection: sqlite3.Connection, row: Row, accepts: int) -> None:
    waiting = [prediction(seed) for seed in range(accepts)]
    wall, cpu = time.perf_counter(), time.process_time()
    for one in waiting:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(INSERT.sqlite.sql, INSERT.sqlite.pick(encode_prediction(one, None, 1)))
        event = encode_event(queued(one), 1)
        connection.execute(INSERT_EVENT.sqlite.sql, INSERT_EVENT.sqlite.pick(event))
        connection.execute("COMMIT")
    row.per_s.append(accepts / (time.perf_counter() - wall))
    row.cpu_us.append((time.process_time() - cpu) / accepts * 1e6)


async def read(get: Callable[[str], Awaitable[Prediction]], ids: Iterable[str], row: Row) -> None:
    wanted = list(ids)
    wall, cpu = time.perf_counter(), time.process_time()
    for id_ in wanted:
        await get(id_)
    row.per_s.append(len(wanted) / (time.perf_counter() - wall))
    row.cpu_us.append((time.process_time() - cpu) / len(wanted) * 1e6)


def plain_connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in WRITER_PRAGMAS:
        connection.execute(pragma)
    return connection


async def accepts(folder: Path, rounds: int, number: int) -> list[Row]:
    ours = {callers: Row(f"store, {callers} callers") for callers in CALLERS}
    plain = Row("plain sqlite3, a commit each")
    database = open_database(f"sqlite:///{folder}/store.db")
    other = open_database(f"sqlite:///{folder}/plain.db")
    await database.start()
    await other.start()  # for its schema; the same file is then written by hand
    await other.stop()
    connection = plain_connection(folder / "plain.db")
    store = SqlPredictionStore(database)
    await accept(store, 64, Row("warm-up"), number // 4)
    accept_plainly(connection, Row("warm-up"), number // 8)
    for _ in range(rounds):
        for callers, row in ours.items():
            await accept(store, callers, row, number // 8 if callers == 1 else number)
        accept_plainly(connection, plain, number // 8)
    connection.close()
    await database.stop()
    return [*ours.values(), plain]


async def reads(folder: Path, rounds: int, number: int) -> list[Row]:
    new, polled = Row("read on the loop, new rows"), Row("read on the loop, one row polled")
    handed = Row("read handed to a thread, new rows")
    database = SqliteDatabase(folder / "read.db")
    await database.start()
    store = SqlPredictionStore(database)
    rows = [prediction(seed) for seed in range(number)]
    await asyncio.gather(*(store.add(one, queued(one)) for one in rows))

    async def by_thread(id_: str) -> Prediction:
        return await database.scan(get_row(id_))

    for turn in range(rounds):
        half = number // 2
        await read(store.get, (one.id for one in rows[:half]), new)
        await read(store.get, [rows[turn].id] * half, polled)
        await read(by_thread, (one.id for one in rows[half:]), handed)
    await database.stop()
    return [new, polled, handed]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, help="where the files go; the disk decides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accepts", type=int, default=2000, help="per round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        found = await accepts(Path(folder), args.rounds, args.accepts)
        found += await reads(Path(folder), args.rounds, args.accepts)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}, load {load}")
    print(f"{'median (lowest-highest)':<34}{'per second':<21}{'CPU us each':<21}{'writer CPU us'}")
    for row in found:
        print(row.line())
    facts = {"bench": "store", "rounds": args.rounds, "accepts": args.accepts}
    print(json.dumps({**facts, **{row.name: row.medians() for row in found}}))


if __name__ == "__main__":
    asyncio.run(main())
