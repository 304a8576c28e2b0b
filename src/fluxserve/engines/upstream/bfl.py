"""The client side of BFL's HTTP API, and of resellers that mount it under a prefix.

POST /{model}             submit
GET  /get_result?id=      poll
There is no cancel and no list: a lost answer can only be resolved by a callback.
"""

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fluxserve.core.errors import ErrorCode
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
from fluxserve.engines.upstream.wire import Guard, Wire
from fluxserve.engines.upstream.words import fields, words_of

MICRO_PER_CREDIT = 10_000  # one credit is a hundredth of a USD
SIBLINGS = ".bfl.ai"  # the service's regional hosts, which its answers may name


class Bfl:
    """One account at BFL or a reseller of its shape."""

    can_poll = True

    def __init__(self, spec: ChannelSpec, guard: Guard) -> None:
        self.spec = spec
        self.wire = Wire(spec, _key_headers(spec), guard)

    async def picture(self, url: str) -> bytes:
        return await self.wire.picture(url)

    async def close(self) -> None:
        await self.wire.close()

    def outputs_max(self, model: str) -> int:
        return 1

    async def prepare(self, order: Order) -> Letter:
        return Letter(path=f"/{order.model}", body=self._body(order))

    async def submit(self, letter: Letter, order: Order) -> Accepted:
        job = reading.accepted_body(await self.wire.send(letter, order.token))
        job_id = reading.job_id(job.get("id"))
        if not job_id:
            raise reading.no_id(self.spec.name, job)
        cost = reading.number(job.get("cost"))
        return Accepted(
            ticket=Ticket(
                upstream_id=job_id,
                poll_url=self._trusted(reading.text(job.get("polling_url"))),
                model=order.model,
                token=order.token,
            ),
            cost_micro=None if cost is None else round(cost * MICRO_PER_CREDIT),
        )

    async def poll(self, ticket: Ticket) -> State:
        params = {"id": ticket.upstream_id}
        if ticket.poll_url:
            answer = await self.wire.ask_sibling(ticket.poll_url)
        else:
            answer = await self.wire.ask("GET", "/get_result", params=params)
        if answer.status == 404:
            raise PollLie(f"{self.spec.name}: Task not found")
        if not answer.is_success:
            raise PollTrouble(f"{self.spec.name}: {answer.sentence()}")
        job = answer.json()
        if job.get("id") != ticket.upstream_id:
            raise PollLie(f"{self.spec.name} answered with another job")
        return self._state(job)

    async def cancel(self, ticket: Ticket) -> bool:
        return False

    async def find(self, lost: Lost, taken: Taken) -> Accepted | Lookup:
        return Lookup.IMPOSSIBLE

    def heard(self, body: Mapping[str, JSON]) -> str | None:
        return reading.job_id(body.get("id")) or reading.job_id(body.get("task_id")) or None

    def _trusted(self, url: str) -> str:
        """A polling URL on a sister host of the real service; "" means: poll by id on our own."""
        try:
            theirs, ours = urlsplit(url), urlsplit(self.spec.root)
            host = theirs.hostname or ""
        except ValueError:
            return ""
        is_sister = host.endswith(SIBLINGS) and (ours.hostname or "").endswith(SIBLINGS)
        return url if is_sister and theirs.scheme == "https" and host != ours.hostname else ""

    def _body(self, order: Order) -> dict[str, JSON]:
        words = words_of(ChannelKind.BFL, order.model)
        values = fields(order, self.spec)
        if len(order.images) > len(words.images):
            text = f"{order.model} takes {len(words.images)} input images, not {len(order.images)}"
            raise Refused(Refusal.INPUT, f"{self.spec.name}: {text}")
        for name, picture in zip(words.images, order.images, strict=False):
            values[name] = base64.b64encode(picture.data).decode()
        if order.mask is not None and words.mask:
            values[words.mask] = base64.b64encode(order.mask.data).decode()
        if order.callback_url:
            values |= {"webhook_url": order.callback_url, "webhook_secret": order.token}
        return values

    def _state(self, job: Mapping[str, Any]) -> State:
        name = self.spec.name
        match job.get("status"):
            case "Pending":
                return Working(progress=_fraction(job.get("progress")))
            case "Ready":
                result = reading.mapping(job.get("result"))
                link = result.get("sample")
                seconds = reading.number(result.get("duration"))
                metrics: dict[str, JSON] = {} if seconds is None else {"predict_s": seconds}
                return Finished(pictures=[link] if isinstance(link, str) else [], metrics=metrics)
            case "Request Moderated":
                return Ended(failure=reading.failed(name, _why(job), ErrorCode.INPUT_REFUSED))
            case "Content Moderated":
                return Ended(failure=reading.failed(name, _why(job), ErrorCode.OUTPUT_REFUSED))
            case "Error":
                return Ended(failure=reading.failed(name, _why(job)))
            case "Task not found":
                raise PollLie(f"{name}: Task not found")
        status = reading.text(job.get("status"))[:40]
        raise PollLie(f"{name} answered with the unknown status {status!r}")


def _key_headers(spec: ChannelSpec) -> dict[str, str]:
    """BFL reads x-key; resellers, who mount it under a prefix, read a Bearer key."""
    bearer = {"authorization": f"Bearer {spec.key}"}
    own = {"x-key": spec.key}
    if spec.key_header:
        return bearer if spec.key_header == "bearer" else own
    return own if urlsplit(spec.root).path == "/v1" else own | bearer


def _fraction(value: Any) -> float | None:
    """Their progress as 0..1; the unit of the real service is not documented."""
    said = reading.number(value)
    if said is None or said < 0:
        return None
    return min(1.0, said if said <= 1 else said / 100)


def _why(job: Mapping[str, Any]) -> str:
    """The reason in `details`, the moderation ones joined, else the status itself."""
    details = reading.mapping(job.get("details"))
    reasons = [text for text in reading.items(details.get("Moderation Reasons")) if text]
    said = (
        ", ".join(map(str, reasons))
        or reading.text(details.get("message"))
        or reading.text(details.get("error"))
        or reading.text(job.get("error"))
    )
    status = reading.text(job.get("status"))
    return said if said and status == "Error" else f"{status}: {said}" if said else status
