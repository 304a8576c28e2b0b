"""Webhook messages as rows: planned with the move they tell of, sent later, never forgotten."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fluxserve.core.events import EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.prediction import Prediction


class DeliveryState(StrEnum):
    PENDING = "pending"
    SENT = "sent"
    DEAD = "dead"  # given up; can be sent again by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message to one receiver. Its id is the webhook id on every try."""

    id: str
    prediction_id: str
    kind: str  # start or completed: the two that are never dropped
    url: str
    created_at: datetime
    next_at: datetime
    tries: int = 0
    state: DeliveryState = DeliveryState.PENDING
    last_status: int = 0  # HTTP status of the last try; 0: no answer
    last_error: str = ""


_KIND = {EventKind.STARTED: "start", EventKind.FINISHED: "completed"}


def plan(prediction: Prediction, kind: EventKind, at: datetime) -> tuple[Delivery, ...]:
    """The messages that this event of `prediction` owes to its webhook."""
    webhook = prediction.origin.webhook
    message = _KIND.get(kind)
    if webhook is None or message is None or message not in webhook.events:
        return ()
    delivery = Delivery(
        id=new_id(),
        prediction_id=prediction.id,
        kind=message,
        url=webhook.url,
        created_at=at,
        next_at=at,
    )
    return (delivery,)
