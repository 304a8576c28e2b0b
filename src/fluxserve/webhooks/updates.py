"""Messages about running predictions: best effort, newest state, at most one each 500 ms.

Replicate's `output` and `logs` events. They are not stored and not retried; what a later message
would say anyway is dropped. `start` and `completed` are rows in the outbox, see sender.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import NotFound
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.prediction import OutputImage, Prediction
from fluxserve.core.request import BlobRef, WebhookSpec
from fluxserve.webhooks.courier import Courier

log = logging.getLogger(__name__)

INTERVAL_S = 0.5
AT_ONCE = 256  # predictions followed at once; the news of further ones is dropped
RECHECK_S = 5.0  # silent for so long: it may have ended at another server, and no bus told
UNWANTED_MAX = 1024  # predictions known to want no news, until those that have ended are looked for
_KINDS = {EventKind.OUTPUT: "output", EventKind.LOG: "logs"}


@dataclass(slots=True)
class _Story:
    """One running prediction with a receiver that wants news."""

    news: set[str] = field(default_factory=set)  # kinds not told yet
    outputs: dict[int, OutputImage] = field(default_factory=dict)
    has_ended: bool = False
    is_wanted: bool = True
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Updates:
    """Listens on the bus and tells receivers what happens in between."""

    def __init__(
        self,
        *,
        bus: EventBus,
        predictions: Callable[[str], Awaitable[Prediction]],
        courier: Courier,
        clock: Callable[[], datetime],
        interval_s: float = INTERVAL_S,
        recheck_s: float = RECHECK_S,
    ) -> None:
        self._bus = bus
        self._predictions = predictions
        self._courier = courier
        self._clock = clock
        self._interval_s = interval_s
        self._recheck_s = recheck_s
        self._stories: dict[str, _Story] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def start(self) -> None:
        self._bus.hook(self._hear)

    async def stop(self) -> None:
        """Best effort ends here: what is under way is dropped."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _hear(self, event: Event) -> None:
        story = self._stories.get(event.prediction_id)
        if story is None:
            if event.kind not in _KINDS or not self._may_follow():
                return
            self._forget_unwanted()
            story = self._stories[event.prediction_id] = _Story()
            task = asyncio.create_task(self._tell(event.prediction_id, story))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        match event.kind:
            case EventKind.OUTPUT:
                story.outputs[_number(event, "index")] = _output(event)
                story.news.add("output")
            case EventKind.LOG:
                story.news.add("logs")
            case EventKind.REQUEUED:
                story.outputs.clear()  # they belonged to the attempt that was lost
            case EventKind.FINISHED:
                story.has_ended = True
                if not story.is_wanted:
                    del self._stories[event.prediction_id]
            case _:
                return
        story.wake.set()

    def _may_follow(self) -> bool:
        return not self._is_stopping and len(self._tasks) < AT_ONCE

    def _forget_unwanted(self) -> None:
        """Those that ended elsewhere were never heard of again."""
        if len(self._stories) >= UNWANTED_MAX:
            self._stories = {id_: one for id_, one in self._stories.items() if one.is_wanted}

    async def _tell(self, prediction_id: str, story: _Story) -> None:
        """Follow one prediction to its end, or note that nobody asked for news of it."""
        try:
            prediction = await self._predictions(prediction_id)
            story.has_ended |= prediction.is_terminal
            webhook = prediction.origin.webhook
            wanted = set(webhook.events) & set(_KINDS.values()) if webhook else set()
            story.is_wanted = bool(wanted)
            if webhook and wanted:
                await self._tell_all(prediction_id, story, webhook, wanted)
        except NotFound:
            story.has_ended = True  # deleted in the meantime: nothing to tell
        except Exception:
            story.has_ended = True
            log.exception("news of %s could not be told", prediction_id)
        finally:
            if story.is_wanted or story.has_ended:
                self._stories.pop(prediction_id, None)

    async def _tell_all(
        self, prediction_id: str, story: _Story, webhook: WebhookSpec, wanted: set[str]
    ) -> None:
        tells_end = "completed" in webhook.events  # then the last state comes by itself
        while not (story.has_ended and (tells_end or not story.news & wanted)):
            story.wake.clear()
            told = story.news & wanted
            story.news.clear()
            if told:
                kind = "output" if "output" in told else "logs"
                await self._send(prediction_id, story, kind, webhook.url)
                await asyncio.sleep(self._interval_s)
            elif not await self._woken(story):
                prediction = await self._predictions(prediction_id)
                story.has_ended |= prediction.is_terminal

    async def _woken(self, story: _Story) -> bool:
        # Not wait_for: on Python 3.11 it forgets a cancel that meets a wake-up.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._recheck_s):
                await story.wake.wait()
        return story.wake.is_set()

    async def _send(self, prediction_id: str, story: _Story, kind: str, url: str) -> None:
        prediction = await self._predictions(prediction_id)
        if not prediction.is_terminal and story.outputs:
            # Until the end the outputs are known by their events alone.
            outputs = tuple(story.outputs[index] for index in sorted(story.outputs))
            prediction = replace(prediction, outputs=outputs)
        at = self._clock()
        message = Delivery(
            id=new_id(),
            prediction_id=prediction_id,
            kind=kind,
            url=url,
            created_at=at,
            next_at=at,
        )
        answer = await self._courier.send(prediction, message)
        if not answer.is_good:
            log.info("webhook (%s) of %s dropped: %s", kind, prediction_id, answer.error)


def _output(event: Event) -> OutputImage:
    blob = BlobRef(key=str(event.data["key"]), mime=str(event.data["mime"]), size_bytes=0)
    return OutputImage(blob=blob, seed=_number(event, "seed"))


def _number(event: Event, name: str) -> int:
    value = event.data[name]
    assert isinstance(value, int)
    return value
