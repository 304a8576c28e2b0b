"""The client side of our own native API, so that one server of ours may stand behind another.

POST /predictions               submit; the Idempotency-Key makes a repeat the same job
GET  /predictions/{id}          poll
POST /predictions/{id}/cancel   cancel
A lost answer is resolved exactly: the same key and body give the same prediction again.
"""

from collections.abc import Mapping
from typing import Any

from fluxserve.core.errors import ErrorCode
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import JSON, Approximation, ImageInput
from fluxserve.engines.upstream import reading
from fluxserve.engines.upstream.answers import (
    REMEMBERED_S,
    Accepted,
    Doubtful,
    Ended,
    Finished,
    Letter,
    Lookup,
    Lost,
    Order,
    PollLie,
    PollTrouble,
    Refused,
    State,
    Taken,
    Ticket,
    Working,
)
from fluxserve.engines.upstream.channel import ChannelSpec
from fluxserve.engines.upstream.replicate import data_uri
from fluxserve.engines.upstream.wire import Guard, Wire
from fluxserve.engines.upstream.words import renamed

PLAIN = (
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "num_steps",
    "guidance",
    "seed",
    "num_outputs",
    "output_quality",
    "safety_check",
)
SWITCHES = ("go_fast", "prompt_upsampling")
OUTPUTS_MAX = 4


class Fluxserve:
    """One key at another server of ours."""

    can_poll = True

    def __init__(self, spec: ChannelSpec, guard: Guard) -> None:
        self.spec = spec
        headers = {"authorization": f"Bearer {spec.key}"} if spec.key else {}
        self.wire = Wire(spec, headers, guard)

    async def picture(self, url: str) -> bytes:
        return await self.wire.picture(url)

    async def close(self) -> None:
        await self.wire.close()

    def outputs_max(self, model: str) -> int:
        return OUTPUTS_MAX

    async def prepare(self, order: Order) -> Letter:
        return Letter(path="/predictions", body=renamed(_values(order), self.spec))

    async def submit(self, letter: Letter, order: Order) -> Accepted:
        job = reading.accepted_body(await self.wire.send(letter, order.token))
        job_id = reading.job_id(job.get("id"))
        if not job_id:
            raise reading.no_id(self.spec.name, job)
        ticket = Ticket(upstream_id=job_id, model=order.model, token=order.token)
        return Accepted(ticket=ticket)

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
        if lost.age_s > REMEMBERED_S:
            return Lookup.IMPOSSIBLE  # a repeat may be a second job by now
        order = await lost.order()
        try:
            return await self.submit(await self.prepare(order), order)
        except Refused as refused:
            # A refusal of the repeat says nothing of the first: it may have been let in before.
            raise PollTrouble(refused.message, retry_after_s=refused.retry_after_s) from refused
        except Doubtful as doubt:
            raise PollTrouble(str(doubt)) from doubt

    def heard(self, body: Mapping[str, JSON]) -> str | None:
        return reading.job_id(body.get("id")) or None

    def _state(self, job: Mapping[str, Any]) -> State:
        name = self.spec.name
        logs = reading.text(job.get("logs"))[: reading.LOGS_MAX]
        match job.get("status"):
            case "queued" | "running":
                return Working(progress=reading.number(job.get("progress")), logs=logs)
            case "succeeded":
                outputs = [reading.mapping(entry) for entry in reading.items(job.get("outputs"))]
                links = [entry.get("url") for entry in outputs]
                return Finished(
                    pictures=[link for link in links if isinstance(link, str)],
                    flagged=[entry.get("flagged") is True for entry in outputs],
                    logs=logs,
                    metrics=_metrics(job),
                )
            case "canceled" | "expired":
                failure = reading.failed(name, "the upstream server canceled the job")
                return Ended(failure=failure, is_canceled=True, logs=logs)
            case "failed":
                error = reading.mapping(job.get("error"))
                words = reading.text(error.get("message"))
                failure = reading.failed(name, words, _code(error.get("code")))
                return Ended(failure=failure, logs=logs, metrics=_metrics(job))
        status = reading.text(job.get("status"))[:40]
        raise PollLie(f"{name} answered with the unknown status {status!r}")


def _values(order: Order) -> dict[str, JSON]:
    request = order.request
    values: dict[str, JSON] = {name: getattr(request, name) for name in PLAIN}
    values |= {name: True for name in SWITCHES if getattr(request, name)}
    values |= {
        "model": order.model,
        "output_format": request.output_format.value,
        "strength": request.strength,
    }
    if request.approximate is not None:
        values["approximate"] = list(request.approximate)
    if request.images:
        pairs = zip(request.images, order.images, strict=True)
        values["images"] = [_picture(*pair) for pair in pairs]
    if request.mask is not None and order.mask is not None:
        values["mask"] = _picture(request.mask, order.mask)
    if request.margins is not None:
        margins = request.margins
        sides = ("top", "bottom", "left", "right")
        values["margins"] = {side: getattr(margins, side) for side in sides}
        values.pop("width")
        values.pop("height")
    if request.loras:
        values["loras"] = [{"path": lora.path, "scale": lora.scale} for lora in request.loras]
    if order.callback_url:
        values["webhook"] = order.callback_url
    return values


def _picture(given: ImageInput, loaded: EncodedImage) -> str:
    """A link stays a link, so that a repeat of the request is the same, byte for byte."""
    return given.url if given.url is not None else data_uri(loaded)


def _code(value: Any) -> ErrorCode:
    try:
        return ErrorCode(value)
    except ValueError:
        return ErrorCode.UPSTREAM_FAILED


def _metrics(job: Mapping[str, Any]) -> dict[str, JSON]:
    """How long it took there, how often the model was called, and which approximations ran."""
    said = reading.mapping(job.get("metrics"))
    found: dict[str, JSON] = {}
    for name in ("predict_s", "model_calls"):
        if (number := reading.number(said.get(name))) is not None:
            found[name] = number
    if "approximations" in said:
        found["approximations"] = [
            name for name in reading.items(said["approximations"]) if name in tuple(Approximation)
        ]
    return found
