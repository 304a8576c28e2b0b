"""Every move of a prediction as one guarded transaction, the same for both databases.

    add ─> queued ── claim ─> running ── renew* ── move ─> succeeded · failed · canceled
             └─ move ─> canceled · failed · expired   └─ move ─> queued (its worker was lost)

A move compares status and attempt with what its caller last saw, in the WHERE clause of the write.
The number of the newest event is a column of the prediction, so numbering needs no second look.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import (
    Column,
    Table,
    bindparam,
    delete,
    exists,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from fluxserve.core.deliveries import Delivery, plan
from fluxserve.core.errors import Conflict, NotFound
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ports import Lease
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import BlobRef
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Param, Statement, Transition
from fluxserve.storage.records import (
    PREDICTION_COLUMNS,
    decode_prediction,
    encode_delivery,
    encode_event,
)

S = PredictionStatus
P = tables.prediction.c
U = tables.blob_use.c

# Literals, not parameters: only then do the databases see that a partial index fits.
IS_QUEUED = text("status = 'queued'")
IS_RUNNING = text("status = 'running'")
IS_FINISHED = text("finished_at IS NOT NULL")


def insert_or_ignore(table: Table, *unique: str, returning: Column[str] | None = None) -> Statement:
    """INSERT that does nothing, and returns nothing, where a row has the same `unique` columns."""
    on_sqlite = sqlite.insert(table).on_conflict_do_nothing(index_elements=unique)
    on_postgresql = postgresql.insert(table).on_conflict_do_nothing(index_elements=unique)
    if returning is None:
        return Statement(on_sqlite, on_postgresql)
    return Statement(on_sqlite.returning(returning), on_postgresql.returning(returning))


INSERT_EVENT = Statement(insert(tables.event))
INSERT_DELIVERY = Statement(insert(tables.delivery))
USE_BLOB = insert_or_ignore(tables.blob_use, "blob_key", "owner_id")

GET = Statement(select(*PREDICTION_COLUMNS).where(P.id == bindparam("prediction_id")))

HAS_QUEUED = Statement(select(exists().where(IS_QUEUED, P.engine == bindparam("of_engine"))))
NEXT_QUEUED = (
    select(P.id)
    .where(IS_QUEUED, P.engine == bindparam("of_engine"))
    .order_by(P.priority.desc(), P.created_at, P.id)
    .limit(literal_column("1"))
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
CLAIM = Statement(
    update(tables.prediction)
    .where(P.id == NEXT_QUEUED, IS_QUEUED)
    .values(
        status=literal_column("'running'"),
        attempt=P.attempt + literal_column("1"),
        started_at=bindparam("at"),
        lease_owner=bindparam("owner"),
        lease_until=bindparam("until"),
        last_seq=P.last_seq + literal_column("1"),
    )
    .returning(*PREDICTION_COLUMNS, P.last_seq)
)
RENEW = Statement(
    update(tables.prediction)
    .where(
        P.id == bindparam("prediction_id"),
        IS_RUNNING,
        P.attempt == bindparam("fence"),
        P.lease_owner == bindparam("owner"),
    )
    .values(lease_until=bindparam("until"), logs=bindparam("new_logs"), progress=bindparam("done"))
    .returning(P.cancel_requested)
)
ASK_CANCEL = Statement(
    update(tables.prediction)
    .where(P.id == bindparam("prediction_id"), IS_RUNNING)
    .values(cancel_requested=literal_column("1"))
    .returning(*PREDICTION_COLUMNS)
)
COUNT_EVENT = Statement(
    update(tables.prediction)
    .where(P.id == bindparam("prediction_id"), IS_RUNNING, P.attempt == bindparam("fence"))
    .values(last_seq=P.last_seq + literal_column("1"))
    .returning(P.last_seq)
)
MOVE = Statement(
    update(tables.prediction)
    .where(
        P.id == bindparam("prediction_id"),
        P.status == bindparam("old_status"),
        P.attempt == bindparam("old_attempt"),
    )
    .values(
        status=bindparam("new_status"),
        attempt=bindparam("new_attempt"),
        engine=bindparam("new_engine"),
        started_at=bindparam("new_started_at"),
        finished_at=bindparam("new_finished_at"),
        deadline_at=bindparam("new_deadline_at"),
        # A flag that was raised meanwhile stays up.
        cancel_requested=P.cancel_requested.op("|")(bindparam("canceling")),
        progress=bindparam("new_progress"),
        served_by=bindparam("new_served_by"),
        data_removed=bindparam("new_data_removed"),
        request=bindparam("new_request"),
        outputs=bindparam("new_outputs"),
        failure=bindparam("new_failure"),
        metrics=bindparam("new_metrics"),
        logs=bindparam("new_logs"),
        lease_owner=literal_column("NULL"),
        lease_until=literal_column("NULL"),
        last_seq=P.last_seq + literal_column("1"),
    )
    .returning(P.last_seq)
)
STRIPPABLE = Statement(
    select(*PREDICTION_COLUMNS)
    .where(IS_FINISHED, text("data_removed = 0"), P.finished_at < bindparam("before"))
    .order_by(P.finished_at)
    .limit(bindparam("most"))
)
STRIP = Statement(
    update(tables.prediction)
    .where(P.id == bindparam("prediction_id"))
    .values(
        request=bindparam("new_request"),
        origin=bindparam("new_origin"),
        outputs=literal_column("'[]'"),
        logs=literal_column("''"),
        metrics=bindparam("new_metrics"),
        data_removed=literal_column("1"),
    )
)
PURGEABLE = Statement(
    select(P.id)
    .where(P.created_at < bindparam("before"), IS_FINISHED)
    .order_by(P.created_at, P.id)
    .limit(bindparam("most"))
)
DELETE = Statement(delete(tables.prediction).where(P.id == bindparam("prediction_id")))
FORGET_USES = Statement(
    delete(tables.blob_use).where(U.owner_id == bindparam("owner")).returning(U.blob_key)
)
IS_USED = Statement(select(exists().where(U.blob_key == bindparam("key"))))


def move(
    before: Prediction, after: Prediction, event: Event, deliveries: Sequence[Delivery]
) -> Transition[Event]:
    """Save `after`; Conflict if status or attempt are no longer `before`'s."""
    rows = yield MOVE(_moved(before, after))
    if not rows:
        yield from get(before.id)  # NotFound rather than Conflict
        raise Conflict(f"the prediction is no longer {before.status}")
    for output in after.outputs:
        yield USE_BLOB({"blob_key": output.blob.key, "owner_id": after.id})
    if after.request is not before.request:
        yield from use_blobs(after.id, codec.input_blobs(after.request))
    return (yield from _record(event, rows[0][0], deliveries))


def _moved(before: Prediction, after: Prediction) -> Mapping[str, Param]:
    return {
        "prediction_id": before.id,
        "old_status": before.status.value,
        "old_attempt": before.attempt,
        "new_status": after.status.value,
        "new_attempt": after.attempt,
        "new_engine": after.engine,
        "new_started_at": codec.maybe_micros(after.started_at),
        "new_finished_at": codec.maybe_micros(after.finished_at),
        "new_deadline_at": codec.maybe_micros(after.deadline_at),
        "canceling": int(after.cancel_requested),
        "new_progress": after.progress,
        "new_served_by": after.served_by,
        "new_data_removed": int(after.data_removed),
        "new_request": codec.encode_request(after.request),
        "new_outputs": codec.encode_outputs(after.outputs),
        "new_failure": codec.encode_failure(after.failure),
        "new_metrics": codec.encode_map(after.metrics),
        "new_logs": codec.encode_words(after.logs),
    }


def has_queued(engine: str) -> Transition[bool]:
    rows = yield HAS_QUEUED({"of_engine": engine})
    return bool(rows[0][0])


def claim(
    engine: str, owner: str, at: datetime, lease_until: datetime
) -> Transition[tuple[Prediction, Event] | None]:
    """Start the next queued prediction of `engine`, with its event and its start message."""
    rows = yield CLAIM(
        {
            "of_engine": engine,
            "owner": owner,
            "at": codec.to_micros(at),
            "until": codec.to_micros(lease_until),
        }
    )
    if not rows:
        return None
    prediction = decode_prediction(rows[0])
    event = Event(
        prediction_id=prediction.id,
        kind=EventKind.STARTED,
        at=at,
        data={"attempt": prediction.attempt},
    )
    messages = plan(prediction, EventKind.STARTED, at)
    return prediction, (yield from _record(event, rows[0][-1], messages))


def renew(prediction: Prediction, owner: str, lease_until: datetime) -> Transition[Lease]:
    rows = yield RENEW(
        {
            "prediction_id": prediction.id,
            "fence": prediction.attempt,
            "owner": owner,
            "until": codec.to_micros(lease_until),
            "new_logs": codec.encode_words(prediction.logs),
            "done": prediction.progress,
        }
    )
    if not rows:
        raise Conflict("the lease was lost: somebody else has moved this prediction")
    return Lease(cancel_requested=bool(rows[0][0]))


def append(event: Event, attempt: int) -> Transition[Event]:
    """Number and save what start `attempt` tells; Conflict when that start is over."""
    rows = yield COUNT_EVENT({"prediction_id": event.prediction_id, "fence": attempt})
    if not rows:
        yield from get(event.prediction_id)  # NotFound rather than Conflict
        raise Conflict(f"start {attempt} of the prediction is over")
    return (yield from _record(event, rows[0][0], ()))


def ask_cancel(prediction_id: str) -> Transition[Prediction]:
    rows = yield ASK_CANCEL({"prediction_id": prediction_id})
    return decode_prediction(rows[0]) if rows else (yield from get(prediction_id))


def get(prediction_id: str) -> Transition[Prediction]:
    rows = yield GET({"prediction_id": prediction_id})
    if not rows:
        raise NotFound("no such prediction")
    return decode_prediction(rows[0])


# --- forgetting ----------------------------------------------------------------------------------


def forget(
    prediction_id: str, first: Callable[[str], Transition[None]]
) -> Transition[Sequence[BlobRef]]:
    """Delete a finished prediction whole; returns the blobs that nothing refers to any more.

    `first` is given its id before.
    """
    prediction = yield from get(prediction_id)
    if not prediction.is_terminal:
        raise Conflict(f"the prediction is still {prediction.status}: cancel it first")
    yield from first(prediction_id)
    yield DELETE({"prediction_id": prediction_id})
    return (yield from drop_uses(prediction_id, _blobs(prediction)))


def strip(
    finished_before: datetime, limit: int, first: Callable[[str], Transition[None]]
) -> Transition[tuple[int, Sequence[BlobRef]]]:
    """Drop the pictures and words of old predictions: of how many, and the blobs nothing refers
    to any more. `first` is given the id of each before."""
    rows = yield STRIPPABLE({"before": codec.to_micros(finished_before), "most": limit})
    unused: list[BlobRef] = []
    for row in rows:
        prediction = decode_prediction(row)
        stripped = prediction.strip()
        yield from first(prediction.id)
        yield STRIP(
            {
                "prediction_id": prediction.id,
                "new_request": codec.encode_request(stripped.request),
                "new_origin": codec.encode_origin(stripped.origin),
                "new_metrics": codec.encode_map(stripped.metrics),
            }
        )
        unused += yield from drop_uses(prediction.id, _blobs(prediction))
    return len(rows), unused


def purge(
    created_before: datetime, limit: int, first: Callable[[str], Transition[None]]
) -> Transition[int]:
    """Delete old predictions that are finished; `first` is given the id of each before."""
    rows = yield PURGEABLE({"before": codec.to_micros(created_before), "most": limit})
    for (prediction_id,) in rows:
        yield from first(prediction_id)
        yield DELETE({"prediction_id": prediction_id})
        yield FORGET_USES({"owner": prediction_id})
    return len(rows)


def use_blobs(owner_id: str, blobs: Iterable[BlobRef]) -> Transition[None]:
    """Note that `owner_id` needs `blobs`."""
    for blob in blobs:
        yield USE_BLOB({"blob_key": blob.key, "owner_id": owner_id})


def drop_uses(owner_id: str, blobs: Iterable[BlobRef]) -> Transition[Sequence[BlobRef]]:
    """`owner_id` needs `blobs` no longer: those that nobody needs now, each once."""
    yield FORGET_USES({"owner": owner_id})
    unused: list[BlobRef] = []
    for blob in {blob.key: blob for blob in blobs}.values():
        rows = yield IS_USED({"key": blob.key})
        if not rows[0][0]:
            unused.append(blob)
    return unused


def _blobs(prediction: Prediction) -> tuple[BlobRef, ...]:
    made = tuple(output.blob for output in prediction.outputs)
    return (*codec.input_blobs(prediction.request), *made)


def _record(event: Event, seq: int, deliveries: Iterable[Delivery]) -> Transition[Event]:
    yield INSERT_EVENT(encode_event(event, seq))
    for delivery in deliveries:
        yield INSERT_DELIVERY(encode_delivery(delivery))
    return replace(event, seq=seq)
