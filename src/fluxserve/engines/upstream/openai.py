"""The client side of the OpenAI Images API: the answer to a submission is the picture itself.

POST /images/generations   JSON
POST /images/edits         multipart
There is nothing to poll, cancel or look up: a lost answer stays unknown.
"""

from collections.abc import Mapping
from typing import Any

from fluxserve.core.errors import InvalidRequest
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import JSON, OutputFormat
from fluxserve.core.sizes import both_ways, nearest
from fluxserve.engines.upstream import reading
from fluxserve.engines.upstream.answers import (
    Accepted,
    Finished,
    Letter,
    Lookup,
    Lost,
    Order,
    PollLie,
    Refusal,
    Refused,
    State,
    Taken,
    Ticket,
)
from fluxserve.engines.upstream.channel import ChannelKind, ChannelSpec
from fluxserve.engines.upstream.wire import Guard, Wire
from fluxserve.engines.upstream.words import fields, words_of
from fluxserve.images.codec import decode, encode
from fluxserve.images.inline import decode_base64

OPENAIS_OWN = ("gpt-image", "dall-e", "chatgpt-image")  # models that refuse unknown fields
OWN_SIZES = both_ways([(1024, 1024), (1536, 1024)])


class Openai:
    """One account at OpenAI or a service of its shape."""

    can_poll = False

    def __init__(self, spec: ChannelSpec, guard: Guard) -> None:
        self.spec = spec
        self.wire = Wire(spec, {"authorization": f"Bearer {spec.key}"}, guard)

    async def picture(self, url: str) -> bytes:
        return await self.wire.picture(url)

    async def close(self) -> None:
        await self.wire.close()

    def outputs_max(self, model: str) -> int:
        return words_of(ChannelKind.OPENAI, model).outputs_max

    async def prepare(self, order: Order) -> Letter:
        values = self._values(order)
        if not order.images:
            return Letter(path="/images/generations", body=values)
        form = {name: _form(value) for name, value in values.items()}
        return Letter(path="/images/edits", form=form, files=_files(order))

    async def submit(self, letter: Letter, order: Order) -> Accepted:
        try:
            answer = await self.wire.send(letter, order.token)
        except Refused as refused:
            raise _sharper(refused) from refused
        body = reading.accepted_body(answer)
        data = [reading.mapping(entry) for entry in reading.items(body.get("data"))]
        if not data:
            raise reading.no_id(self.spec.name, body)
        pictures = [picture for picture in map(_picture, data) if picture]
        # No id to come back to: the job is known by our own name for it.
        ticket = Ticket(upstream_id=order.token, model=order.model, token=order.token)
        return Accepted(ticket=ticket, state=Finished(pictures=pictures))

    async def poll(self, ticket: Ticket) -> State:
        raise PollLie(f"{self.spec.name} has nothing to poll, and the pictures were lost")

    async def cancel(self, ticket: Ticket) -> bool:
        return False

    async def find(self, lost: Lost, taken: Taken) -> Accepted | Lookup:
        return Lookup.IMPOSSIBLE

    def heard(self, body: Mapping[str, JSON]) -> str | None:
        return None

    def _values(self, order: Order) -> dict[str, JSON]:
        request = order.request
        values: dict[str, JSON] = {"model": order.model, **fields(order, self.spec)}
        if order.model.startswith(OPENAIS_OWN):
            values.pop("seed", None)
            if request.width and request.height:
                values["size"] = str(nearest(request.width / request.height, OWN_SIZES))
        else:
            values |= {
                "response_format": "b64_json",
                "steps": request.num_steps,
                "guidance": request.guidance,
            }
        return values


def _form(value: JSON) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _files(order: Order) -> list[tuple[str, tuple[str, bytes, str]]]:
    name = "image" if len(order.images) == 1 else "image[]"
    files = [(name, (f"{i}", p.data, p.mime)) for i, p in enumerate(order.images)]
    if order.mask is not None:
        files.append(("mask", ("mask.png", _holes(order.mask).data, "image/png")))
    return files


def _holes(mask: EncodedImage) -> EncodedImage:
    """Our mask, where white is repainted, as theirs, where transparent is."""
    white = decode(mask.data, "L", field="mask", pixels_max=None)
    holes = white.convert("RGBA")
    holes.putalpha(white.point([255 - level for level in range(256)]))
    return encode(holes, OutputFormat.PNG)


def _picture(entry: Mapping[str, Any]) -> str | bytes | None:
    """The bytes or the link of one entry of `data`."""
    inline = entry.get("b64_json")
    if isinstance(inline, str):
        try:
            return decode_base64(inline, field="b64_json", size_max_bytes=len(inline))
        except InvalidRequest:
            return b""  # no picture: whoever checks it says so
    link = entry.get("url")
    return link if isinstance(link, str) else None


def _sharper(refused: Refused) -> Refused:
    """429 also means an empty account here, and 400 the content check."""
    words = refused.message.lower()
    if refused.kind is Refusal.RATE and "quota" in words:
        return Refused(Refusal.CREDIT, refused.message)
    if refused.kind is Refusal.INPUT and reading.is_moderation(words):
        return Refused(Refusal.CONTENT, refused.message)
    return refused
