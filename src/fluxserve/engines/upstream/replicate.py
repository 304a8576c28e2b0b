"""The client side of Replicate's HTTP API, and of resellers that mount it under a prefix.

POST /models/{owner}/{name}/predictions, or /predictions with a version    submit
GET  /predictions/{id}                                                     poll
POST /predictions/{id}/cancel                                              cancel
GET  /predictions                                                          look up
POST /files                                                                upload
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

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
from fluxserve.engines.upstream.wire import Guard, Wire
from fluxserve.engines.upstream.words import fields, words_of

INLINE_MAX_BYTES = 256 * 1024  # Replicate's own advice: larger pictures are uploaded
_PROGRESS = re.compile(r"^\s*(\d+)%\s*\|.+?\|\s*(\d+)/(\d+)", re.MULTILINE)
_VERSION = re.compile(r"(.+:)?[0-9a-f]{64}")


class Replicate:
    """One account at Replicate or a reseller of its shape."""

    can_poll = True

    def __init__(self, spec: ChannelSpec, guard: Guard) -> None:
        self.spec = spec
        self.wire = Wire(spec, {"authorization": f"Bearer {spec.key}"}, guard)

    async def picture(self, url: str) -> bytes:
        return await self.wire.picture(url)

    async def close(self) -> None:
        await self.wire.close()

    def outputs_max(self, model: str) -> int:
        return words_of(ChannelKind.REPLICATE, model).outputs_max

    async def prepare(self, order: Order) -> Letter:
        values = fields(order, self.spec)
        facts = {SENT: json.dumps(values)}
        body: dict[str, JSON] = {"input": values | await self._pictures(order)}
        if order.callback_url:
            body |= {"webhook": order.callback_url, "webhook_events_filter": ["completed"]}
        path = f"/models/{order.model}/predictions"
        if _VERSION.fullmatch(order.model):
            path = "/predictions"
            body["version"] = order.model
        return Letter(path=path, body=body, facts=facts)

    async def submit(self, letter: Letter, order: Order) -> Accepted:
        job = reading.accepted_body(await self.wire.send(letter, order.token))
        job_id = reading.job_id(job.get("id"))
        if not job_id:
            raise reading.no_id(self.spec.name, job)
        return _accepted(job_id, order.model, order.token)

    async def poll(self, ticket: Ticket) -> State:
        answer = await self.wire.ask("GET", f"/predictions/{ticket.upstream_id}")
        if answer.status == 404:
            raise PollLie(f"{self.spec.name} does not know the job any more")
        if not answer.is_success:
            raise PollTrouble(f"{self.spec.name}: {answer.sentence()}")
        job = answer.json()
        if job.get("id") != ticket.upstream_id:
            raise PollLie(f"{self.spec.name} answered with another job")
        return self._state(job)

    async def cancel(self, ticket: Ticket) -> bool:
        answer = await self.wire.ask("POST", f"/predictions/{ticket.upstream_id}/cancel")
        return answer.is_success

    async def find(self, lost: Lost, taken: Taken) -> Accepted | Lookup:
        search = Search(lost)
        params: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            answer = await self.wire.ask("GET", "/predictions", params=params)
            if not answer.is_success:
                return Lookup.IMPOSSIBLE
            page = answer.json()
            is_read = search.read(jobs_in(self.spec.name, page.get("results")))
            if is_read or not page.get("next"):
                return await search.result(taken)
            cursor = _cursor(reading.text(page.get("next")))
            if not cursor:
                return Lookup.IMPOSSIBLE
            params = {"cursor": cursor}
        return Lookup.IMPOSSIBLE  # more jobs than we read: absence proves nothing

    def heard(self, body: Mapping[str, JSON]) -> str | None:
        return reading.job_id(body.get("id")) or None

    async def _pictures(self, order: Order) -> dict[str, JSON]:
        words = words_of(ChannelKind.REPLICATE, order.model)
        values: dict[str, JSON] = {}
        for name, picture in zip(words.images, order.images, strict=False):
            values[name] = await self._picture(picture)
        if len(order.images) > len(words.images):
            text = f"{order.model} takes {len(words.images)} input images, not {len(order.images)}"
            raise Refused(Refusal.INPUT, f"{self.spec.name}: {text}")
        if order.mask is not None and words.mask:
            values[words.mask] = await self._picture(order.mask)
        return values

    async def _picture(self, picture: EncodedImage) -> str:
        """A link to the uploaded picture, or the picture itself where it is small."""
        if len(picture.data) > INLINE_MAX_BYTES:
            part = ("content", ("input", picture.data, picture.mime))
            try:
                answer = await self.wire.ask("POST", "/files", files=[part])
                if answer.is_success:
                    return reading.text(reading.mapping(answer.json().get("urls")).get("get"))
            except (PollTrouble, PollLie):
                pass  # a reseller without uploads: the data URI has no documented bound
        return data_uri(picture)

    def _state(self, job: Mapping[str, Any]) -> State:
        logs = reading.text(job.get("logs"))[: reading.LOGS_MAX]
        match job.get("status"):
            case "starting" | "processing" | "queued":
                return Working(progress=_progress(logs), logs=logs)
            case "succeeded":
                output = job.get("output")
                links = [output] if isinstance(output, str) else list(reading.items(output))
                pictures = [link for link in links if isinstance(link, str)]
                return Finished(pictures=pictures, logs=logs, metrics=_metrics(job))
            case "canceled" | "aborted":
                failure = reading.failed(self.spec.name, "the provider canceled the job")
                return Ended(failure=failure, is_canceled=True, logs=logs, metrics=_metrics(job))
            case "failed":
                words = reading.text(job.get("error"))
                failure = reading.failed(self.spec.name, words)
                if reading.is_moderation(words) and "input" in words.lower().split(" or ")[0]:
                    failure = reading.failed(self.spec.name, words, ErrorCode.INPUT_REFUSED)
                return Ended(failure=failure, logs=logs, metrics=_metrics(job))
        status = reading.text(job.get("status"))[:40]
        raise PollLie(f"{self.spec.name} answered with the unknown status {status!r}")


def _accepted(job_id: str, model: str, token: str) -> Accepted:
    return Accepted(ticket=Ticket(upstream_id=job_id, model=model, token=token))


def _cursor(link: str) -> str:
    """Where the next page begins, from the link to it; "" when it does not say so."""
    try:
        return parse_qs(urlsplit(link).query).get("cursor", [""])[0]
    except ValueError:
        return ""


def data_uri(picture: EncodedImage) -> str:
    return f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}"


def _progress(logs: str) -> float | None:
    """The last progress bar of a log, 0..1."""
    steps = _PROGRESS.findall(logs)
    if not steps:
        return None
    _, step, total = steps[-1]
    return min(1.0, int(step) / int(total)) if int(total) else None


def _metrics(job: Mapping[str, Any]) -> dict[str, JSON]:
    theirs = reading.mapping(job.get("metrics"))
    seconds = reading.number(theirs.get("predict_time"))
    return {} if seconds is None else {"predict_s": seconds}
