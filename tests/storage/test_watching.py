"""What a poll may remember: nothing that a commit has changed, whoever wrote it."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy.sql.dml import Delete, Insert, Update

from fluxserve.core.errors import NotFound, QueueFull
from fluxserve.core.events import EventKind
from fluxserve.core.ports import Idempotency
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.storage import accept, attempts, predictions, tables, transitions
from fluxserve.storage.database import Statement, Transition
from fluxserve.storage.predictions import SqlPredictionStore
from fluxserve.storage.sqlite import SqliteDatabase
from tests.contracts.material import NOW, event, finished, prediction

LEASE = timedelta(seconds=30)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "store.db")
    await opened.start()
    yield opened
    await opened.stop()


async def test_a_prediction_that_nothing_changed_is_read_from_the_database_once(
    database: SqliteDatabase,
) -> None:
    store = SqlPredictionStore(database)
    one = prediction()
    await store.add(one, event(one))
    first = await store.get(one.id)
    assert await store.get(one.id) is first


async def test_every_move_is_seen_by_the_next_look(database: SqliteDatabase) -> None:
    store = SqlPredictionStore(database)
    one = prediction(engine="here")
    other = prediction(engine="here", created_at=NOW + LEASE)
    for waiting in (one, other):
        await store.add(waiting, event(waiting))
    assert (await store.get(one.id)).status is PredictionStatus.QUEUED
    assert await store.queue_position(other) == 1

    claimed = await store.claim("here", owner="me", at=NOW, lease_until=NOW + LEASE)
    assert claimed
    assert (await store.get(one.id)).status is PredictionStatus.RUNNING
    assert await store.queue_position(other) == 0

    running = replace(claimed[0], logs="half way")
    await store.renew(running, owner="me", lease_until=NOW + 2 * LEASE)
    assert (await store.get(one.id)).logs == "half way"
    await store.ask_cancel(one.id)
    assert (await store.get(one.id)).cancel_requested

    ended = claimed[0].cancel(NOW)
    await store.move(claimed[0], ended, event(ended))
    assert (await store.get(one.id)).status is PredictionStatus.CANCELED
    await store.delete(one.id)
    with pytest.raises(NotFound):
        await store.get(one.id)


async def test_old_data_that_is_stripped_or_purged_is_not_shown_again(
    database: SqliteDatabase,
) -> None:
    store = SqlPredictionStore(database)
    one = prediction()
    await store.add(one, event(one))
    ended = one.cancel(NOW)
    await store.move(one, ended, event(ended))
    assert not (await store.get(one.id)).data_removed
    await store.strip(NOW + LEASE)
    assert (await store.get(one.id)).data_removed
    await store.purge(one.created_at + 1000 * LEASE)
    with pytest.raises(NotFound):
        await store.get(one.id)


async def test_what_another_store_writes_is_seen_too(database: SqliteDatabase) -> None:
    one = prediction(engine="here")
    store = SqlPredictionStore(database)
    await store.add(one, event(one))
    await store.get(one.id)
    await SqlPredictionStore(database).claim("here", owner="me", at=NOW, lease_until=NOW + LEASE)
    assert (await store.get(one.id)).status is PredictionStatus.RUNNING


async def test_a_database_in_memory_promises_nothing() -> None:
    assert not SqliteDatabase(None).watch(lambda prediction_id: None)


def writers(module: ModuleType) -> list[tuple[str, Statement]]:
    found = [(n, v) for n, v in vars(module).items() if isinstance(v, Statement)]
    return [(n, v) for n, v in found if v.sqlite.writes == tables.prediction.name]


@pytest.mark.parametrize("module", [accept, attempts, predictions, transitions])
def test_every_statement_that_writes_predictions_tells_which(module: ModuleType) -> None:
    for name, statement in writers(module):
        construct = statement._construct
        assert isinstance(construct, Insert | Update | Delete), name
        sql = statement.sqlite.sql
        tells = "RETURNING id" in sql or "RETURNING prediction.id" in sql
        named = {"prediction_id", "id"} & construct.compile().params.keys()
        assert tells or named, name


async def test_one_that_goes_before_others_moves_them_back(database: SqliteDatabase) -> None:
    store = SqlPredictionStore(database)
    waiting = prediction(engine="here")
    await store.add(waiting, event(waiting))
    assert await store.queue_position(waiting) == 0
    urgent = prediction(engine="here", priority=1, created_at=NOW + LEASE)
    await store.add(urgent, event(urgent))
    assert await store.queue_position(waiting) == 1


async def test_a_write_that_fails_leaves_what_is_remembered_true(database: SqliteDatabase) -> None:
    store = SqlPredictionStore(database)
    one = prediction()
    await store.add(one, event(one))
    before = await store.get(one.id)

    def breaks() -> Transition[None]:
        yield transitions.DELETE({"prediction_id": one.id})
        raise ValueError("on second thoughts")

    with pytest.raises(ValueError, match="second thoughts"):
        await database.run(breaks())
    assert await store.get(one.id) == before


async def test_places_of_new_ones_are_counted_on_without_another_look(
    database: SqliteDatabase,
) -> None:
    """As each is stored its place is asked for; it is the one that a look at all would give."""
    store = SqlPredictionStore(database)
    looker = SqlPredictionStore(database)  # remembers nothing of what `store` was told
    looks = 0
    read = database.read

    async def counted(transition: Transition[object]) -> object:
        nonlocal looks
        looks += 1
        return await read(transition)

    database.read = counted  # type: ignore[method-assign, assignment]
    moments = iter(range(1000))

    async def add(priority: int = 0, engine: str = "here") -> Prediction:
        at = NOW + timedelta(seconds=next(moments))
        one = prediction(engine=engine, priority=priority, created_at=at)
        assert await store.add(one, event(one)) is one
        place = await store.queue_position(one)
        looked = looks
        assert place == await looker.queue_position(one)
        assert looks == looked + 1  # the looker remembers nothing
        return one

    for _ in range(5):
        await add()
    assert looks == 5 + 1
    await asyncio.gather(*(add(priority=number % 3) for number in range(12)))
    await add(priority=3)  # goes before all of them
    await add()
    await add(engine="there")
    last = await add()
    await store.claim("here", owner="me", at=NOW, lease_until=NOW + LEASE)
    await add()
    ended = last.cancel(NOW)
    await store.move(last, ended, event(ended))
    await add()


async def test_ones_that_are_handed_on_stand_in_the_line_they_came_to(
    database: SqliteDatabase,
) -> None:
    store = SqlPredictionStore(database)
    rows = []
    for seconds, engine in enumerate(["two", *["one"] * 5]):
        at = NOW + timedelta(seconds=seconds)
        rows.append(prediction(engine=engine, created_at=at))
        await store.add(rows[-1], event(rows[-1]))
    for row in rows[1:]:
        moved = replace(event(row), kind=EventKind.REQUEUED)
        await store.move(row, row.move_to("two"), moved)
    assert await store.queue_position(rows[0]) == 0
    for place in (6, 7):
        late = prediction(engine="two", created_at=NOW + timedelta(seconds=10 + place))
        await store.add(late, event(late))
        assert await store.queue_position(late) == place


async def test_one_that_is_refused_or_came_before_takes_no_place(database: SqliteDatabase) -> None:
    store = SqlPredictionStore(database)
    name = Idempotency(key="name", body_hash="hash")
    one = prediction(engine="here")
    await store.add(one, event(one), idempotency=name)
    assert await store.queue_position(one) == 0
    again = prediction(engine="here", created_at=NOW + LEASE)
    assert (await store.add(again, event(again), idempotency=name)).id == one.id
    refused = prediction(engine="here", created_at=NOW + LEASE)
    with pytest.raises(QueueFull):
        await store.add(refused, event(refused), queue_max=1)
    other = prediction(engine="here", created_at=NOW + 2 * LEASE)
    await store.add(other, event(other))
    assert await store.queue_position(other) == 1


async def test_one_that_is_stored_though_nobody_waits_for_it_has_its_place(
    database: SqliteDatabase,
) -> None:
    store = SqlPredictionStore(database)
    first = prediction(engine="here")
    await store.add(first, event(first))
    assert await store.queue_position(first) == 0
    left = prediction(engine="here", created_at=NOW + LEASE)
    adding = asyncio.create_task(store.add(left, event(left)))
    database.watch(lambda prediction_id: adding.cancel() and None)  # as it is committed
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert (await store.get(left.id)).status is PredictionStatus.QUEUED
    last = prediction(engine="here", created_at=NOW + 2 * LEASE)
    await store.add(last, event(last))
    assert await store.queue_position(last) == 2


async def test_who_has_seen_the_last_event_sees_the_end(
    database: SqliteDatabase, tmp_path: Path
) -> None:
    """Events are read straight from the file, where a commit may stand before it is told of."""
    store = SqlPredictionStore(database)
    one = prediction()
    await store.add(one, event(one))
    assert not (await store.get(one.id)).is_terminal
    ended = one.cancel(NOW)
    told = asyncio.ensure_future(store.move(one, ended, finished(ended)))
    for _ in range(3):  # until the writer has it
        await asyncio.sleep(0)
    wait_for_commit(tmp_path / "store.db")  # the loop hears nothing meanwhile
    last = (await store.events(one.id))[-1]
    assert last.kind is EventKind.FINISHED
    assert not told.done()
    assert (await store.get(one.id)).is_terminal
    await told


def wait_for_commit(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as reader:
        for _ in range(1000):
            if reader.execute("SELECT 1 FROM prediction WHERE status = 'canceled'").fetchone():
                return
            time.sleep(0.01)
    pytest.fail("the writer never committed")
