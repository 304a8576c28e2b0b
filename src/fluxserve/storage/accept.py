"""Acceptance, the hot path: a prediction and its first event, within limits, exactly once.

The first event says what the row of the prediction says already, so it has no row of its own: it
is `implied`, and whoever reads the events gets it from there.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import bindparam, func, insert, literal_column, select, text

from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import Conflict, QueueFull, RateLimited
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ports import Idempotency
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Statement, Transition
from fluxserve.storage.records import (
    PREDICTION_COLUMNS,
    decode_prediction,
    encode_delivery,
    encode_event,
    encode_prediction,
)
from fluxserve.storage.transitions import (
    INSERT_DELIVERY,
    INSERT_EVENT,
    IS_QUEUED,
    insert_or_ignore,
    use_blobs,
)

P = tables.prediction.c

RETRY_AFTER_S = 5.0

INSERT = Statement(insert(tables.prediction))
INSERT_ONCE = insert_or_ignore(tables.prediction, "key_id", "idem_key", returning=P.id)
SAME_NAME = Statement(
    select(*PREDICTION_COLUMNS, P.idem_hash).where(
        P.key_id == bindparam("key"), P.idem_key == bindparam("name")
    )
)
# Remembered: while the queue is full and nothing moves, refusing costs no count.
COUNT_QUEUED = Statement(
    select(func.count()).select_from(tables.prediction).where(IS_QUEUED),
    remembers=tables.prediction.name,
)
COUNT_UNFINISHED = Statement(
    select(func.count())
    .select_from(tables.prediction)
    .where(P.key_id == bindparam("key"), text("finished_at IS NULL"))
)
# Where servers share a database: until the end of the transaction nobody else passes by this name.
ONE_BY_ONE = Statement(
    select(literal_column("1")),
    select(func.pg_advisory_xact_lock(func.hashtext(bindparam("key")))),
)


class QueueGauge:
    """How many more predictions surely fit into the queue.

    Counting the queue takes longer the longer it is. Between two counts it can only grow by what
    this process adds, so a count is good for as many acceptances as it left room for; a requeue
    voids it. Several processes on one database may each use the room they saw: the bound is then
    soft by that much.
    """

    def __init__(self) -> None:
        self._room = 0
        self._queue_max = 0

    def void(self) -> None:
        self._room = 0

    def take(self, queue_max: int) -> Transition[None]:
        """Take one place; QueueFull when there is none."""
        if self._room <= 0 or queue_max != self._queue_max:
            rows = yield COUNT_QUEUED({})
            self._room, self._queue_max = queue_max - rows[0][0], queue_max
        if self._room <= 0:
            raise QueueFull(
                f"{queue_max} predictions are waiting already: try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self._room -= 1


def accept(
    prediction: Prediction,
    event: Event,
    deliveries: Sequence[Delivery],
    idempotency: Idempotency | None,
    queue: QueueGauge,
    queue_max: int,
    concurrency_max: int,
) -> Transition[Prediction]:
    """Insert it, or return the earlier one of the same name; see `PredictionStore.add`."""
    if idempotency and (earlier := (yield from _earlier(prediction, idempotency))):
        return earlier
    if concurrency_max:
        yield from _check_concurrency(prediction.origin.key_id or "", concurrency_max)
    if queue_max and prediction.status is PredictionStatus.QUEUED:
        yield from queue.take(queue_max)
    row = encode_prediction(prediction, idempotency, last_seq=1)
    if idempotency is None:
        yield INSERT(row)
    elif not (yield INSERT_ONCE(row)):
        # Another process was faster by less than a transaction; its row is there now.
        if faster := (yield from _earlier(prediction, idempotency)):
            return faster
        raise Conflict("what had this idempotency key was deleted at this moment: try again")
    if event.kind is not EventKind.QUEUED or event.at != prediction.created_at or event.data:
        yield INSERT_EVENT(encode_event(event, 1))
    for delivery in deliveries:
        yield INSERT_DELIVERY(encode_delivery(delivery))
    if blobs := codec.input_blobs(prediction.request):
        yield from use_blobs(prediction.id, blobs)
    return prediction


def implied(prediction_id: str, created_at: datetime) -> Event:
    """The first event of every prediction, where none was stored."""
    return Event(prediction_id=prediction_id, kind=EventKind.QUEUED, at=created_at, seq=1)


def _earlier(prediction: Prediction, idempotency: Idempotency) -> Transition[Prediction | None]:
    rows = yield SAME_NAME({"key": prediction.origin.key_id or "", "name": idempotency.key})
    if not rows:
        return None
    if rows[0][-1] != idempotency.body_hash:
        raise Conflict("this idempotency key was used before, with another request")
    return decode_prediction(rows[0])


def _check_concurrency(key_id: str, concurrency_max: int) -> Transition[None]:
    # Counted and accepted one by one: two at once would each find room for itself.
    yield ONE_BY_ONE({"key": key_id})
    rows = yield COUNT_UNFINISHED({"key": key_id})
    if rows[0][0] >= concurrency_max:
        raise RateLimited(
            f"this key may have {concurrency_max} unfinished predictions, and has them",
            retry_after_s=RETRY_AFTER_S,
        )
