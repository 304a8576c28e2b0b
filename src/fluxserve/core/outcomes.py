"""How a running prediction ends or goes back: one move, its event, its webhook messages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from fluxserve.core.deliveries import plan
from fluxserve.core.errors import Failure
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.ports import BlobStore, EncodedImage, Output, PredictionStore
from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.core.request import JSON, BlobRef

_SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class Outcomes:
    """Shared by everything that runs predictions: the dispatcher, the upstream workers.

    Each method raises Conflict when the prediction has moved on without us.
    """

    def __init__(
        self,
        *,
        store: PredictionStore,
        blobs: BlobStore,
        bus: EventBus,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._bus = bus
        self._clock = clock

    async def keep(self, prediction: Prediction, output: Output) -> OutputImage:
        """Store one picture under its own key and tell of it; a re-run overwrites it."""
        key = output_key(prediction.id, output.index, output.image)
        blob = await self._blobs.put(key, output.image.data, output.image.mime)
        image = OutputImage(
            blob=_sized(blob, output.image), seed=output.seed, flagged=output.flagged
        )
        data: dict[str, JSON] = {
            "index": output.index,
            "attempt": prediction.attempt,
            "key": key,
            "mime": output.image.mime,
            "seed": output.seed,
        }
        event = Event(
            prediction_id=prediction.id, kind=EventKind.OUTPUT, at=self._clock(), data=data
        )
        self._bus.publish(await self._store.append(event))
        return image

    async def succeed(
        self,
        before: Prediction,
        outputs: Sequence[OutputImage],
        metrics: Mapping[str, JSON],
    ) -> Prediction:
        at = self._clock()
        return await self._end(before, before.succeed(tuple(outputs), at, metrics), at)

    async def fail(self, before: Prediction, failure: Failure) -> Prediction:
        at = self._clock()
        return await self._end(before, before.fail(failure, at), at)

    async def cancel(self, before: Prediction) -> Prediction:
        at = self._clock()
        return await self._end(before, before.cancel(at), at)

    async def requeue(self, before: Prediction, engine: str | None = None) -> Prediction:
        """Back to the queue with the same seed; `engine`: to be served by another one."""
        is_queued = before.status is PredictionStatus.QUEUED
        after = before.move_to(engine) if is_queued and engine else before.requeue(engine)
        event = Event(
            prediction_id=before.id,
            kind=EventKind.REQUEUED,
            at=self._clock(),
            data={"attempt": before.attempt},
        )
        self._bus.publish(await self._store.move(before, after, event))
        return after

    async def _end(self, before: Prediction, after: Prediction, at: datetime) -> Prediction:
        event = Event(
            prediction_id=after.id,
            kind=EventKind.FINISHED,
            at=at,
            data={"status": after.status.value},
        )
        deliveries = plan(after, EventKind.FINISHED, at)
        self._bus.publish(await self._store.move(before, after, event, deliveries))
        return after


def output_key(prediction_id: str, index: int, image: EncodedImage) -> str:
    """Where a picture is stored: the same for every attempt, so a re-run adopts the place."""
    return f"outputs/{prediction_id}/out-{index}.{_SUFFIX.get(image.mime, 'bin')}"


def _sized(blob: BlobRef, image: EncodedImage) -> BlobRef:
    return replace(blob, width=image.width, height=image.height)
