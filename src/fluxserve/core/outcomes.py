"""How a running prediction ends or goes back: one move, its event, its webhook messages."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeAlias

from fluxserve.core.blobkeys import output_key
from fluxserve.core.deliveries import Delivery, plan
from fluxserve.core.errors import Conflict, Failure, NotFound, Unavailable
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.ports import BlobStore, EncodedImage, Output, PredictionStore
from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.core.request import JSON, BlobRef

log = logging.getLogger(__name__)

# PredictionStore.move, or something that does as much.
Save: TypeAlias = Callable[[Prediction, Prediction, Event, Sequence[Delivery]], Awaitable[Event]]


class Outcomes:
    """Shared by everything that runs predictions: the dispatcher, the upstream workers.

    The moves raise Conflict when the prediction has moved on without us.
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
        """Store one picture in the place of this start, and tell of it while the start runs.

        A start that the prediction has moved on from writes over nothing and is heard by nobody:
        the pictures it still brings are orphans, and its end is refused.
        """
        image, event = await self.put(prediction, output)
        await self.tell(prediction, event)
        return image

    async def tell(self, prediction: Prediction, event: Event) -> None:
        """Save and publish what a start tells; nothing happens when that start is over.

        A database that is away ends no run for that: the result tells the same.
        """
        try:
            self._bus.publish(await self._store.append(event, attempt=prediction.attempt))
        except (Conflict, NotFound):
            pass
        except Unavailable as error:
            log.warning("%s: %s could not be told: %s", prediction.id, event.kind, error.message)

    async def put(self, prediction: Prediction, output: Output) -> tuple[OutputImage, Event]:
        """Store one picture in the place of this start; the event that tells of it is not saved."""
        mime = output.image.mime
        key = output_key(prediction.id, prediction.attempt, output.index, mime)
        blob = await self._blobs.put(key, output.image.data, output.image.mime)
        image = OutputImage(
            blob=_sized(blob, output.image), seed=output.seed, flagged=output.flagged
        )
        data: dict[str, JSON] = {
            "index": output.index,
            "attempt": prediction.attempt,
            "key": key,
            "mime": mime,
            "seed": output.seed,
        }
        at = self._clock()
        event = Event(prediction_id=prediction.id, kind=EventKind.OUTPUT, at=at, data=data)
        return image, event

    async def succeed(
        self,
        before: Prediction,
        outputs: Sequence[OutputImage],
        metrics: Mapping[str, JSON],
        save: Save | None = None,
    ) -> Prediction:
        """`save` instead of the store's own move, where more is to be saved in one transaction."""
        at = self._clock()
        return await self._end(before, before.succeed(tuple(outputs), at, metrics), at, save)

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

    async def _end(
        self, before: Prediction, after: Prediction, at: datetime, save: Save | None = None
    ) -> Prediction:
        event = Event(
            prediction_id=after.id,
            kind=EventKind.FINISHED,
            at=at,
            data={"status": after.status.value},
        )
        deliveries = plan(after, EventKind.FINISHED, at)
        self._bus.publish(await (save or self._store.move)(before, after, event, deliveries))
        return after


def _sized(blob: BlobRef, image: EncodedImage) -> BlobRef:
    return replace(blob, width=image.width, height=image.height)
