"""Predictions, events and the like, as few words as a test needs."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fluxserve.core.deliveries import Delivery
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.ports import StoredFile
from fluxserve.core.prediction import OutputImage, Prediction
from fluxserve.core.request import BlobRef, ImageInput, ImageRequest, Origin, Task, WebhookSpec

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
WEBHOOK = WebhookSpec(url="https://example.com/hook", events=("start", "completed"))


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def blob(key: str, **more: Any) -> BlobRef:
    return BlobRef(key=key, mime="image/png", size_bytes=3, **more)


def request(*inputs: BlobRef, **more: Any) -> ImageRequest:
    plain: dict[str, Any] = {
        "model": "tiny",
        "task": Task.TEXT_TO_IMAGE,
        "prompt": "a fox",
        "width": 64,
        "height": 64,
        "num_steps": 4,
        "guidance": 2.5,
        "seed": 7,
        "images": tuple(ImageInput(blob=one) for one in inputs),
    }
    return ImageRequest(**{**plain, **more})


def prediction(*inputs: BlobRef, **more: Any) -> Prediction:
    """`key_id`, `dialect`, `model_name` and `webhook` go to the origin, the rest as it is named."""
    origin = {
        name: more.pop(name)
        for name in ("key_id", "dialect", "model_name", "webhook")
        if name in more
    }
    plain: dict[str, Any] = {
        "id": new_id(),
        "request": request(*inputs),
        "origin": Origin(**{"dialect": "native", "model_name": "tiny", **origin}),
        "engine": "local",
        "created_at": NOW,
    }
    return Prediction(**{**plain, **more})


def event(of: Prediction, kind: EventKind = EventKind.QUEUED, at: datetime = NOW) -> Event:
    return Event(prediction_id=of.id, kind=kind, at=at, data={"n": 1})


def finished(of: Prediction) -> Event:
    return event(of, EventKind.FINISHED)


def output(key: str) -> OutputImage:
    return OutputImage(blob=blob(key), seed=7)


def delivery(of: Prediction, **more: Any) -> Delivery:
    plain: dict[str, Any] = {
        "id": new_id(),
        "prediction_id": of.id,
        "kind": "completed",
        "url": "https://example.com/hook",
        "created_at": NOW,
        "next_at": NOW,
    }
    return Delivery(**{**plain, **more})


def stored_file(key: str = "inputs/a", **more: Any) -> StoredFile:
    plain: dict[str, Any] = {
        "id": new_id(),
        "key_id": "mine",
        "blob": blob(key),
        "name": "fox.png",
        "created_at": NOW,
        "expires_at": after(3600),
    }
    return StoredFile(**{**plain, **more})


def without(event_: Event) -> Event:
    """An event as it was before it got its number."""
    return replace(event_, seq=0)
