"""Rows of the tables as values of the core, and back."""

from collections.abc import Mapping

from fluxserve.core.deliveries import Delivery, DeliveryState
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ports import Idempotency
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Param, Row

P = tables.prediction.c

PREDICTION_COLUMNS = (
    P.id,
    P.request,
    P.origin,
    P.engine,
    P.created_at,
    P.status,
    P.priority,
    P.outputs,
    P.failure,
    P.attempt,
    P.started_at,
    P.finished_at,
    P.deadline_at,
    P.cancel_requested,
    P.logs,
    P.progress,
    P.metrics,
    P.served_by,
    P.data_removed,
)
_WIDTH = len(PREDICTION_COLUMNS)

EVENT_COLUMNS = tuple(tables.event.columns)
DELIVERY_COLUMNS = tuple(tables.delivery.columns)


def decode_prediction(row: Row) -> Prediction:
    """`row` starts with PREDICTION_COLUMNS; further columns are the caller's."""
    (
        id_,
        request,
        origin,
        engine,
        created_at,
        status,
        priority,
        outputs,
        failure,
        attempt,
        started_at,
        finished_at,
        deadline_at,
        cancel_requested,
        logs,
        progress,
        metrics,
        served_by,
        data_removed,
    ) = row[:_WIDTH]
    return Prediction(
        id=id_,
        request=codec.decode_request(request),
        origin=codec.decode_origin(origin),
        engine=engine,
        created_at=codec.to_time(created_at),
        status=PredictionStatus(status),
        priority=priority,
        outputs=codec.decode_outputs(outputs),
        failure=codec.decode_failure(failure),
        attempt=attempt,
        started_at=codec.maybe_time(started_at),
        finished_at=codec.maybe_time(finished_at),
        deadline_at=codec.maybe_time(deadline_at),
        cancel_requested=bool(cancel_requested),
        logs=codec.decode_words(logs),
        progress=progress,
        metrics=codec.decode_map(metrics),
        served_by=served_by,
        data_removed=bool(data_removed),
    )


def encode_prediction(
    prediction: Prediction, idempotency: Idempotency | None, last_seq: int
) -> Mapping[str, Param]:
    origin = prediction.origin
    return {
        "id": prediction.id,
        "key_id": origin.key_id or "",
        "tenant_id": origin.tenant_id,
        "dialect": origin.dialect,
        "model": prediction.request.model,
        "model_name": origin.model_name,
        "engine": prediction.engine,
        "status": prediction.status.value,
        "priority": prediction.priority,
        "created_at": codec.to_micros(prediction.created_at),
        "started_at": codec.maybe_micros(prediction.started_at),
        "finished_at": codec.maybe_micros(prediction.finished_at),
        "deadline_at": codec.maybe_micros(prediction.deadline_at),
        "attempt": prediction.attempt,
        "lease_owner": None,
        "lease_until": None,
        "cancel_requested": int(prediction.cancel_requested),
        "progress": prediction.progress,
        "served_by": prediction.served_by,
        "data_removed": int(prediction.data_removed),
        "last_seq": last_seq,
        "idem_key": idempotency.key if idempotency else None,
        "idem_hash": idempotency.body_hash if idempotency else None,
        "request": codec.encode_request(prediction.request),
        "origin": codec.encode_origin(origin),
        "outputs": codec.encode_outputs(prediction.outputs),
        "failure": codec.encode_failure(prediction.failure),
        "metrics": codec.encode_map(prediction.metrics),
        "logs": codec.encode_words(prediction.logs),
    }


def encode_event(event: Event, seq: int) -> Mapping[str, Param]:
    """`event` as number `seq` of its prediction."""
    return {
        "prediction_id": event.prediction_id,
        "seq": seq,
        "kind": event.kind.value,
        "at": codec.to_micros(event.at),
        "data": codec.encode_map(event.data),
    }


def decode_event(row: Row) -> Event:
    prediction_id, seq, kind, at, data = row
    return Event(
        prediction_id=prediction_id,
        kind=EventKind(kind),
        at=codec.to_time(at),
        data=codec.decode_map(data),
        seq=seq,
    )


def encode_delivery(delivery: Delivery) -> Mapping[str, Param]:
    return {
        "id": delivery.id,
        "prediction_id": delivery.prediction_id,
        "kind": delivery.kind,
        "url": delivery.url,
        "created_at": codec.to_micros(delivery.created_at),
        "next_at": codec.to_micros(delivery.next_at),
        "tries": delivery.tries,
        "state": delivery.state.value,
        "last_status": delivery.last_status,
        "last_error": codec.encode_words(delivery.last_error),
    }


def decode_delivery(row: Row) -> Delivery:
    id_, prediction_id, kind, url, created_at, next_at, tries, state, last_status, last_error = row
    return Delivery(
        id=id_,
        prediction_id=prediction_id,
        kind=kind,
        url=url,
        created_at=codec.to_time(created_at),
        next_at=codec.to_time(next_at),
        tries=tries,
        state=DeliveryState(state),
        last_status=last_status,
        last_error=codec.decode_words(last_error),
    )
