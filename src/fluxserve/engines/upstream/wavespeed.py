"""The client side of WaveSpeed's HTTP API, version 3.

POST /{model}                       submit
GET  /predictions/{id}/result       poll
POST /predictions                   look up
POST /predictions/{id}/cancel       cancel, where there is one
POST /media/upload/binary           upload
"""

import json
from collections.abc import Mapping
from typing import Any

from fluxserve.core.attempts import SENT
from fluxserve.core.errors import ErrorCode
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import JSON
from fluxserve.engines.upstream import reading
from fluxserve.engines.upstream.answers import (
    Accepted,
    Ended,
    Finished,
    Letter,
    Lookup,
    Lost,
    Order,
    PollLie,
    PollTrouble,
    Refusal,
    Refused,
    State,
    Taken,
    Ticket,
    Working,
)
from fluxserve.engines.upstream.channel import ChannelKind, ChannelSpec
from fluxserve.engines.upstream.listing import PAGES_MAX, Search, jobs_in
from fluxserve.engines.upstream.replicate import data_uri
from fluxserve.engines.upstream.wire import Answer, Guard, Wire
from fluxserve.engines.upstream.words import fields, words_of

INLINE_MAX_BYTES = 256 * 1024
PAGE = 100


class Wavespeed:
    """One account at WaveSpeed."""

    can_poll = True

    def __init__(self, spec: ChannelSpec, guard: Guard) -> None:
        self.spec = spec
        self.wire = Wire(spec, {"authorization": f"Bearer {spec.key}"}, guard)

    async def picture(self, url: str) -> bytes:
        return await self.wire.picture(url)

    async def close(self) -> None:
        await self.wire.close()

    def outputs_max(self, model: str) -> int:
        return words_of(ChannelKind.WAVESPEED, model).outputs_max

    async def prepare(self, order: Order) -> Letter:
        values = fields(order, self.spec)
        model = _variant(order)
        return Letter(
            path=f"/{model}",
            params={"webhook": order.callback_url} if order.callback_url else {},
            body=values | await self._pictures(order),
            facts={SENT: json.dumps(values), "model": model},
        )

    async def submit(self, letter: Letter, order: Order) -> Accepted:
        answer = await self.wire.send(letter, order.token)
        envelope = reading.accepted_body(answer)
        job = reading.mapping(envelope.get("data"))
        job_id = reading.job_id(job.get("id"))
        if not job_id:
            code = reading.number(envelope.get("code"))
            status = int(code) if code is not None and code != 200 else None
            raise reading.no_id(self.spec.name, envelope, status)
        return _accepted(job_id, order.model, order.token)

    async def poll(self, ticket: Ticket) -> State:
        answer = await self.wire.ask("GET", f"/predictions/{ticket.upstream_id}/result")
        if answer.status == 404:
            raise PollLie(f"{self.spec.name} does not know the job any more")
        job = reading.mapping(self._envelope(answer).get("data"))
        if job.get("id") != ticket.upstream_id:
            raise PollLie(f"{self.spec.name} answered with another job")
        return self._state(job)

    async def cancel(self, ticket: Ticket) -> bool:
        answer = await self.wire.ask("POST", f"/predictions/{ticket.upstream_id}/cancel")
        if not answer.is_success:
            return False
        self._envelope(answer)
        return True

    async def find(self, lost: Lost, taken: Taken) -> Accepted | Lookup:
        search = Search(lost)
        model = lost.facts.get("model", lost.model)
        count = 0
        for page in range(1, PAGES_MAX + 1):
            asked: dict[str, JSON] = {"page": page, "page_size": PAGE, "model": model}
            answer = await self.wire.ask("POST", "/predictions", body=asked)
            if not answer.is_success:
                return Lookup.IMPOSSIBLE
            data = reading.mapping(self._envelope(answer).get("data"))
            total, items = reading.number(data.get("total")), data.get("items")
            is_none = items is None and total == 0
            jobs = () if is_none else jobs_in(self.spec.name, items)
            count += len(jobs)
            # A short page may also mean that they give fewer at once than we ask for.
            is_last = len(jobs) < PAGE and total is not None and count >= total
            if search.read(jobs) or is_last or not jobs:
                return await search.result(taken)
        return Lookup.IMPOSSIBLE  # more jobs than we read: absence proves nothing

    def heard(self, body: Mapping[str, JSON]) -> str | None:
        return reading.job_id(body.get("id")) or None

    def _envelope(self, answer: Answer) -> Mapping[str, Any]:
        if not answer.is_success:
            raise PollTrouble(f"{self.spec.name}: {answer.sentence()}")
        envelope = answer.json()
        if envelope.get("code", 200) != 200:
            raise PollTrouble(f"{self.spec.name}: {answer.sentence()}")
        return envelope

    async def _pictures(self, order: Order) -> dict[str, JSON]:
        words = words_of(ChannelKind.WAVESPEED, order.model)
        values: dict[str, JSON] = {}
        links = [await self._picture(picture) for picture in order.images]
        is_multi = "/multi" in _variant(order)
        if words.image_list and links and (is_multi or len(links) > 1):
            values[words.image_list] = links
        elif len(links) > 1:
            text = f"{order.model} takes 1 input image, not {len(links)}"
            raise Refused(Refusal.INPUT, f"{self.spec.name}: {text}")
        elif links:
            values[words.images[0]] = links[0]
        if order.mask is not None and words.mask:
            values[words.mask] = await self._picture(order.mask)
        return values

    async def _picture(self, picture: EncodedImage) -> str:
        """A link to the uploaded picture, or the picture itself where it is small."""
        if len(picture.data) > INLINE_MAX_BYTES:
            suffix = picture.mime.rpartition("/")[2]
            part = ("file", (f"input.{suffix}", picture.data, picture.mime))
            try:
                answer = await self.wire.ask("POST", "/media/upload/binary", files=[part])
                link = reading.mapping(self._envelope(answer).get("data")).get("download_url")
            except (PollTrouble, PollLie) as trouble:
                raise Refused(Refusal.BROKEN, f"the upload failed: {trouble}") from trouble
            if isinstance(link, str):
                return link
        return data_uri(picture)

    def _state(self, job: Mapping[str, Any]) -> State:
        name = self.spec.name
        match job.get("status"):
            case "created" | "pending" | "processing" | "queued":
                return Working(progress=None)
            case "completed":
                pictures = [x for x in reading.items(job.get("outputs")) if isinstance(x, str)]
                flagged = [x is True for x in reading.items(job.get("has_nsfw_contents"))]
                return Finished(pictures=pictures, flagged=flagged, metrics=_metrics(job))
            case "cancelled" | "deleted":
                failure = reading.failed(name, "the provider canceled the job")
                return Ended(failure=failure, is_canceled=True)
            case "timeout":
                words = reading.text(job.get("error")) or "the provider ran out of time"
                return Ended(failure=reading.failed(name, words, ErrorCode.TIMED_OUT))
            case "failed":
                words = reading.text(job.get("error"))
                code = ErrorCode.UPSTREAM_FAILED
                if job.get("code") == 1200:
                    code = ErrorCode.INPUT_REFUSED
                return Ended(failure=reading.failed(name, words, code), metrics=_metrics(job))
        status = reading.text(job.get("status"))[:40]
        raise PollLie(f"{name} answered with the unknown status {status!r}")


def _variant(order: Order) -> str:
    """Kontext has a name of its own there for text alone, and one for several pictures."""
    model, count = order.model, len(order.images)
    if count > 1 and model.endswith(("flux-kontext-pro", "flux-kontext-max", "flux-kontext-dev")):
        return f"{model}/multi"
    if count == 0 and model.endswith(("flux-kontext-pro", "flux-kontext-max")):
        return f"{model}/text-to-image"
    return model


def _accepted(job_id: str, model: str, token: str) -> Accepted:
    return Accepted(ticket=Ticket(upstream_id=job_id, model=model, token=token))


def _metrics(job: Mapping[str, Any]) -> dict[str, JSON]:
    millis = reading.number(reading.mapping(job.get("timings")).get("inference"))
    return {} if not millis else {"predict_s": millis / 1000}
