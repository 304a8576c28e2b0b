"""Predictions and models in our own words: create, look, list, cancel, forget, follow."""

import base64
import contextlib
import hashlib
import json
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.access import Caller
from fluxserve.core.errors import InvalidRequest, NotFound, Unavailable
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ids import parse_id
from fluxserve.core.ports import Idempotency, Query
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON, BlobRef, ImageInput, Origin
from fluxserve.dialects.base import Services, answering, bearer, read_object
from fluxserve.dialects.delivery import take_image
from fluxserve.dialects.links import EXTENSION, Links
from fluxserve.dialects.native.words import (
    error,
    in_said_words,
    read_values,
    render,
    render_card,
    render_live,
    render_outlook,
    to_params,
    to_webhook,
)
from fluxserve.dialects.receivers import check_receiver
from fluxserve.dialects.sse import stream
from fluxserve.dialects.wire import Answer, Shown, dump, told

INLINE_MAX = 512  # characters of a string echoed in `said`; longer ones were pictures
PLAIN = frozenset([int, float, bool, type(None)])
NO_STORE = {"Cache-Control": "no-store"}
STREAMED = {**NO_STORE, "Access-Control-Allow-Origin": "*"}


async def caller_of(services: Services, request: Request) -> Caller:
    """Whoever asks: `Authorization: Bearer KEY` or `X-API-Key`."""
    secret = bearer(request) or request.headers.get("x-api-key")
    return await services.keyring.caller(secret)


def id_of(request: Request) -> str:
    """The prediction id in the path, in any alphabet; NotFound."""
    found = parse_id(request.path_params["id"])
    if found is None:
        raise NotFound("there is no such prediction")
    return found


def routes(services: Services, mount: str) -> list[Route]:
    looks = Shown()

    async def create(request: Request) -> Response:
        caller = await caller_of(services, request)
        await services.limiter.hit(caller, "create")
        body = await read_object(request, services.http.body_max_bytes)
        values = read_values(body)
        links = services.links(request, mount)
        images = await _images(services, values.get("images"), caller, links.base)
        mask_text = values.get("mask")
        mask = None
        if isinstance(mask_text, str):
            mask = await take_image(services, mask_text, "mask", caller, links.base)
        deadline = values.get("deadline_s")
        priority = values.get("priority")
        params = to_params(values, images, mask)
        webhook = to_webhook(values)
        check_receiver(services, webhook, "webhook")
        origin = Origin(
            dialect="native",
            model_name=str(values.get("model")),
            key_id=caller.key_id,
            tenant_id=caller.tenant_id,
            base_url=links.base,
            mount=mount,
            said=_said(body),
            webhook=webhook,
        )
        try:
            prediction = await services.predictions.create(
                params,
                origin,
                caller,
                idempotency=_idempotency(request, body),
                deadline_s=float(deadline) if isinstance(deadline, int | float) else None,
                priority=priority if isinstance(priority, int) else 0,
            )
        except InvalidRequest as problem:
            raise in_said_words(values, problem) from problem
        answer = await _live(prediction, links)
        return Answer(answer, 201, {"Location": links.to(f"/predictions/{prediction.id}")})

    async def _live(prediction: Prediction, links: Links) -> dict[str, JSON]:
        outlook = await services.predictions.outlook(prediction)
        return render_live(prediction, outlook, links)

    async def get(request: Request) -> Response:
        caller = await caller_of(services, request)
        prediction = await services.predictions.get(id_of(request), caller)
        wait = _number(request, "wait", 0.0, 60.0)
        if wait:
            prediction = await services.predictions.wait(prediction.id, wait)
        links = services.links(request, mount)
        body = looks.get(prediction, links)
        if body is None:
            body = looks.keep(prediction, links, dump(render(prediction, links)))
        outlook = dump(render_outlook(await services.predictions.outlook(prediction)))
        return told(body[:-1] + b"," + outlook[1:], 200, NO_STORE)

    async def cancel(request: Request) -> Response:
        caller = await caller_of(services, request)
        prediction = await services.predictions.cancel(id_of(request), caller)
        return Answer(await _live(prediction, services.links(request, mount)))

    async def delete(request: Request) -> Response:
        caller = await caller_of(services, request)
        await services.predictions.delete(id_of(request), caller)
        return Response(status_code=204)

    async def page(request: Request) -> Response:
        caller = await caller_of(services, request)
        query = _query(request, caller)
        rows = await services.predictions.page(query)
        links = services.links(request, mount)
        results = [await _live(row, links) for row in rows]
        cursor = None
        if len(rows) == query.limit:
            last = rows[-1]
            cursor = f"{last.created_at.timestamp():.6f}-{last.id}"
        return Answer({"results": results, "next_cursor": cursor}, headers=NO_STORE)

    async def events(request: Request) -> Response:
        caller = await caller_of(services, request)
        prediction = await services.predictions.get(id_of(request), caller)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isdecimal() and len(last) < 10 else 0
        if after and prediction.is_terminal and not await _is_news(services, prediction, after):
            # Browsers come back to anything else.
            return Response(status_code=204, headers=STREAMED)
        return stream(_events(services, request, prediction, after, mount))

    async def models(request: Request) -> Response:
        await caller_of(services, request)
        links = services.links(request, mount)
        cards = services.catalog.cards()
        found = [render_card(card, _engine(services, card.id), links) for card in cards]
        return Answer({"results": found})

    async def model(request: Request) -> Response:
        await caller_of(services, request)
        card = services.catalog.card(request.path_params["name"])
        links = services.links(request, mount)
        return Answer(render_card(card, _engine(services, card.id), links))

    answer = answering(error)
    return [
        Route(f"{mount}/predictions", answer(create), methods=["POST"]),
        Route(f"{mount}/predictions", answer(page), methods=["GET"]),
        Route(f"{mount}/predictions/{{id}}", answer(get), methods=["GET"]),
        Route(f"{mount}/predictions/{{id}}", answer(delete), methods=["DELETE"]),
        Route(f"{mount}/predictions/{{id}}/cancel", answer(cancel), methods=["POST"]),
        Route(f"{mount}/predictions/{{id}}/events", answer(events), methods=["GET"]),
        Route(f"{mount}/models", answer(models), methods=["GET"]),
        Route(f"{mount}/models/{{name:path}}", answer(model), methods=["GET"]),
    ]


async def _events(
    services: Services, request: Request, prediction: Prediction, after: int, mount: str
) -> AsyncIterator[ServerSentEvent]:
    """Stored and live events; the last one carries the finished prediction."""
    with contextlib.suppress(NotFound):  # deleted while it was watched
        async for event in services.predictions.follow(prediction.id, after):
            data: dict[str, JSON] = dict(event.data)
            links = services.links(request, mount)
            if event.kind is EventKind.OUTPUT:
                data = _linked(event, links)
            if event.kind is EventKind.PREVIEW:
                live = services.live.get(prediction.id)
                if live is None or live.preview is None:
                    continue
                picture = base64.b64encode(live.preview.data).decode()
                data["image"] = f"data:{live.preview.mime};base64,{picture}"
            if event.kind is EventKind.FINISHED:
                now = await services.predictions.get(prediction.id)
                outlook = await services.predictions.outlook(now)
                data["prediction"] = render_live(now, outlook, links)
            yield _sent(event, data)


async def _is_news(services: Services, prediction: Prediction, after: int) -> bool:
    """Whether a finished prediction has events after number `after`."""
    return bool([event async for event in services.predictions.follow(prediction.id, after)])


def _linked(event: Event, links: Links) -> dict[str, JSON]:
    """What an output event says, with a link to the picture in place of where it is kept."""
    data = dict(event.data)
    key, mime = str(data.pop("key", "")), str(data.get("mime", ""))
    name = f"out-{data.get('index', 0)}.{EXTENSION.get(mime, 'bin')}"
    ref = BlobRef(key=key, mime=mime, size_bytes=0)
    return {**data, "url": links.blob(ref, name, event.at)}


def _sent(event: Event, data: dict[str, JSON]) -> ServerSentEvent:
    text = json.dumps({"at": event.at.isoformat(), **data}, ensure_ascii=False)
    return ServerSentEvent(
        data=text, event=event.kind.value, id=str(event.seq) if event.seq else None
    )


async def _images(
    services: Services, value: JSON, caller: Caller, base: str
) -> tuple[ImageInput, ...]:
    items = value if isinstance(value, list) else []
    return tuple(
        [
            await take_image(services, item, f"images.{position}", caller, base)
            for position, item in enumerate(items)
            if isinstance(item, str)
        ]
    )


def _said(body: dict[str, JSON]) -> dict[str, JSON]:
    """The body as received, without pictures."""
    return {
        name: value if name == "prompt" or type(value) in PLAIN else _short(value)
        for name, value in body.items()
    }


def _short(value: JSON) -> JSON:
    if isinstance(value, str) and len(value) > INLINE_MAX:
        return f"({len(value)} characters)"
    return [_short(item) for item in value] if isinstance(value, list) else value


def _idempotency(request: Request, body: dict[str, JSON]) -> Idempotency | None:
    key = request.headers.get("idempotency-key", "").strip()
    if not key:
        return None
    if len(key) > 255:
        raise InvalidRequest("at most 255 characters", field="Idempotency-Key")
    canonical = json.dumps(body, sort_keys=True).encode()
    return Idempotency(key=key, body_hash=hashlib.sha256(canonical).hexdigest())


def _engine(services: Services, card_id: str) -> str:
    """Who serves a card just now; empty when nobody does."""
    try:
        return services.router.choose(services.catalog.card(card_id))
    except Unavailable:
        return ""


def _query(request: Request, caller: Caller) -> Query:
    cursor = request.query_params.get("cursor")
    model = request.query_params.get("model")
    status = request.query_params.get("status")
    try:
        statuses = (PredictionStatus(status),) if status else ()
    except ValueError:
        known = ", ".join(PredictionStatus)
        raise InvalidRequest(f"one of {known}", field="status") from None
    return Query(
        key_id=None if caller.is_admin else caller.key_id,
        model_names=(model,) if model else (),
        statuses=statuses,
        cursor=_cursor(cursor) if cursor else None,
        limit=int(_number(request, "limit", 50, 200)) or 50,
    )


def _cursor(text: str) -> tuple[datetime, str]:
    seconds, _, id_ = text.partition("-")
    try:
        return datetime.fromtimestamp(float(seconds), tz=UTC), id_
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest("a cursor from an earlier answer", field="cursor") from None


def _number(request: Request, name: str, default: float, limit: float) -> float:
    if not request.scope["query_string"]:
        return default
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise InvalidRequest(f"a number from 0 to {limit:g}", field=name)
    return min(max(number, 0.0), limit)
