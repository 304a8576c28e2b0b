"""Predictions and their events in SQL: `PredictionStore` over a `Database`."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache

from sqlalchemy import ColumnElement, bindparam, func, select, text, tuple_

from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import NotFound
from fluxserve.core.events import Event
from fluxserve.core.ports import Idempotency, Lease, Query
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import BlobRef
from fluxserve.storage import codec, tables, transitions
from fluxserve.storage.accept import QueueGauge, accept, implied
from fluxserve.storage.attempts import forget_words
from fluxserve.storage.database import Database, Param, Statement, Transition
from fluxserve.storage.recent import AHEAD_MAX, Recent
from fluxserve.storage.records import (
    EVENT_COLUMNS,
    PREDICTION_COLUMNS,
    decode_event,
    decode_prediction,
)

P = tables.prediction.c
E = tables.event.c

SWEEP_MAX = 1000  # rows one look for lost or late predictions returns; the next look goes on

EVENTS = Statement(
    select(*EVENT_COLUMNS)
    .where(E.prediction_id == bindparam("of"), E.seq > bindparam("after"))
    .order_by(E.seq)
)
CREATED = Statement(select(P.created_at).where(P.id == bindparam("of")))
EXPIRED = Statement(
    select(*PREDICTION_COLUMNS)
    .where(transitions.IS_RUNNING, P.lease_until < bindparam("at"))
    .order_by(P.lease_until)
    .limit(bindparam("most"))
)
OVERDUE = Statement(
    select(*PREDICTION_COLUMNS)
    .where(
        text("deadline_at IS NOT NULL AND finished_at IS NULL"), P.deadline_at <= bindparam("at")
    )
    .order_by(P.deadline_at)
    .limit(bindparam("most"))
)
CROWD_S = 1.0  # where a thousand stand before one, nobody counts again for so long
# In the order of the index: the higher priorities, then what is older among equals. Each count
# stops at its limit, so that looking costs as much as there is before one and no more.
_HIGHER = (
    select(P.id)
    .where(
        transitions.IS_QUEUED,
        P.engine == bindparam("of_engine"),
        P.priority > bindparam("own_priority"),
    )
    .limit(AHEAD_MAX)
    .subquery()
)
_OLDER = (
    select(P.id)
    .where(
        transitions.IS_QUEUED,
        P.engine == bindparam("of_engine"),
        P.priority == bindparam("own_priority"),
        tuple_(P.created_at, P.id) < tuple_(bindparam("since"), bindparam("own_id")),
    )
    .limit(AHEAD_MAX)
    .subquery()
)
AHEAD = Statement(
    select(
        select(func.count()).select_from(_HIGHER).scalar_subquery(),
        select(func.count()).select_from(_OLDER).scalar_subquery(),
    )
)


class SqlPredictionStore:
    """`PredictionStore` on either database. Events are published by the caller, after the write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue = QueueGauge()
        self._recent = Recent(database)
        # By engine and priority: since when a thousand stand before one, and how long that holds.
        self._crowds: dict[tuple[str, int], tuple[datetime, float]] = {}

    async def add(
        self,
        prediction: Prediction,
        event: Event,
        deliveries: Sequence[Delivery] = (),
        idempotency: Idempotency | None = None,
        queue_max: int = 0,
        concurrency_max: int = 0,
    ) -> Prediction:
        return await self._accept(
            prediction,
            accept(
                prediction,
                event,
                deliveries,
                idempotency,
                self._queue,
                queue_max,
                concurrency_max,
            ),
        )

    async def _accept(
        self, prediction: Prediction, transition: Transition[Prediction]
    ) -> Prediction:
        stored = None
        self._recent.expect(prediction)
        try:
            stored = await self._database.run(transition)
        finally:
            self._recent.arrived(prediction, stored)
        return stored

    async def get(self, prediction_id: str) -> Prediction:
        known = self._recent.get(prediction_id)
        if known is not None:
            return known
        rows = await self._database.fetch(transitions.GET({"prediction_id": prediction_id}))
        if not rows:
            raise NotFound("no such prediction")
        return self._recent.decoded(rows[0])

    async def page(self, query: Query) -> Sequence[Prediction]:
        return await self._database.scan(_page(query))

    async def count(self, query: Query) -> int:
        return await self._database.scan(_count(query))

    async def claim(
        self, engine: str, *, owner: str, at: datetime, lease_until: datetime
    ) -> tuple[Prediction, Event] | None:
        # A look costs a fifteenth of a write that finds nothing, and most looks find nothing.
        if not await self._database.read(transitions.has_queued(engine)):
            return None
        return await self._database.run(transitions.claim(engine, owner, at, lease_until))

    async def renew(self, prediction: Prediction, *, owner: str, lease_until: datetime) -> Lease:
        return await self._database.run(transitions.renew(prediction, owner, lease_until))

    async def move(
        self,
        before: Prediction,
        after: Prediction,
        event: Event,
        deliveries: Sequence[Delivery] = (),
    ) -> Event:
        if after.status is PredictionStatus.QUEUED:
            self._queue.void()
        return await self._database.run(transitions.move(before, after, event, deliveries))

    async def append(self, event: Event, *, attempt: int) -> Event:
        return await self._database.run(transitions.append(event, attempt))

    async def events(self, prediction_id: str, after: int = 0) -> Sequence[Event]:
        found = await self._database.read(_events(prediction_id, after))
        if found:
            self._recent.outdate(prediction_id)
        return found

    async def expired(self, at: datetime) -> Sequence[Prediction]:
        return await self._database.scan(_due(EXPIRED, at))

    async def overdue(self, at: datetime) -> Sequence[Prediction]:
        return await self._database.scan(_due(OVERDUE, at))

    async def ask_cancel(self, prediction_id: str) -> Prediction:
        return await self._database.run(transitions.ask_cancel(prediction_id))

    async def queue_position(self, prediction: Prediction) -> int:
        if prediction.status is not PredictionStatus.QUEUED:
            return 0
        known = self._recent.position(prediction.id)
        if known is not None:
            return known
        place, since = (prediction.engine, prediction.priority), prediction.created_at
        crowd = self._crowds.get(place)
        if crowd is not None and since >= crowd[0] and time.monotonic() < crowd[1]:
            return AHEAD_MAX
        position = await self._database.read(_ahead(prediction))
        if position == AHEAD_MAX:
            self._crowds[place] = (since, time.monotonic() + CROWD_S)
        return self._recent.counted(prediction, position)

    async def delete(self, prediction_id: str) -> Sequence[BlobRef]:
        return await self._database.run(transitions.forget(prediction_id, self._before_delete))

    async def strip(self, finished_before: datetime, limit: int = 100) -> Sequence[BlobRef]:
        while True:  # many may have left no files: to stop there would leave the others' lie
            stripping = transitions.strip(finished_before, limit, forget_words)
            count, unused = await self._database.run(stripping)
            if unused or count < limit:
                return unused

    async def purge(self, created_before: datetime, limit: int = 100) -> int:
        purging = transitions.purge(created_before, limit, self._before_delete)
        return await self._database.run(purging)

    def _before_delete(self, prediction_id: str) -> Transition[None]:
        """What else goes or stays in the transaction that deletes a prediction."""
        yield from forget_words(prediction_id)


# --- reads ---------------------------------------------------------------------------------------


def _events(prediction_id: str, after: int) -> Transition[Sequence[Event]]:
    rows = yield EVENTS({"of": prediction_id, "after": after})
    found = [decode_event(row) for row in rows]
    if after < 1 and not (found and found[0].seq == 1):
        created = yield CREATED({"of": prediction_id})
        found[:0] = [implied(prediction_id, codec.to_time(row[0])) for row in created]
    return found


def _due(statement: Statement, at: datetime) -> Transition[Sequence[Prediction]]:
    rows = yield statement({"at": codec.to_micros(at), "most": SWEEP_MAX})
    return [decode_prediction(row) for row in rows]


def _ahead(prediction: Prediction) -> Transition[int]:
    rows = yield AHEAD(
        {
            "of_engine": prediction.engine,
            "own_priority": prediction.priority,
            "since": codec.to_micros(prediction.created_at),
            "own_id": prediction.id,
        }
    )
    return min(AHEAD_MAX, int(rows[0][0]) + int(rows[0][1]))


def _page(query: Query) -> Transition[Sequence[Prediction]]:
    params = {**_params(query), "most": query.limit}
    rows = yield _page_statement(frozenset(params), len(query.model_names), len(query.statuses))(
        params
    )
    return [decode_prediction(row) for row in rows]


def _count(query: Query) -> Transition[int]:
    params = _params(query)
    rows = yield _count_statement(frozenset(params), len(query.model_names), len(query.statuses))(
        params
    )
    return int(rows[0][0])


def _params(query: Query) -> dict[str, Param]:
    """What the query says, by name; a filter that says nothing is absent."""
    said: dict[str, Param] = {f"name_{i}": name for i, name in enumerate(query.model_names)}
    said |= {f"status_{i}": status.value for i, status in enumerate(query.statuses)}
    if query.key_id is not None:
        said["key"] = query.key_id
    if query.dialect is not None:
        said["in_dialect"] = query.dialect
    if query.created_after is not None:
        said["from_at"] = codec.to_micros(query.created_after)
    if query.created_before is not None:
        said["to_at"] = codec.to_micros(query.created_before)
    if query.cursor is not None:
        said["seen_at"] = codec.to_micros(query.cursor[0])
        said["seen_id"] = query.cursor[1]
    return said


# One statement for each set of filters in use.
@lru_cache(maxsize=128)
def _page_statement(said: frozenset[str], names: int, statuses: int) -> Statement:
    return Statement(
        select(*PREDICTION_COLUMNS)
        .where(*_filters(said, names, statuses))
        .order_by(P.created_at.desc(), P.id.desc())
        .limit(bindparam("most"))
    )


@lru_cache(maxsize=128)
def _count_statement(said: frozenset[str], names: int, statuses: int) -> Statement:
    counted = select(func.count()).select_from(tables.prediction)
    return Statement(counted.where(*_filters(said, names, statuses)))


def _filters(said: frozenset[str], names: int, statuses: int) -> Iterator[ColumnElement[bool]]:
    if names:
        yield P.model_name.in_([bindparam(f"name_{i}") for i in range(names)])
    if statuses:
        yield P.status.in_([bindparam(f"status_{i}") for i in range(statuses)])
    if "key" in said:
        yield P.key_id == bindparam("key")
    if "in_dialect" in said:
        yield P.dialect == bindparam("in_dialect")
    if "from_at" in said:
        yield P.created_at >= bindparam("from_at")
    if "to_at" in said:
        yield P.created_at < bindparam("to_at")
    if "seen_at" in said:
        yield tuple_(P.created_at, P.id) < tuple_(bindparam("seen_at"), bindparam("seen_id"))
