"""fal's calls: submit, status, result and cancel of the queue; run and its stream.

Every call can come to its own path or through the proxy, so path and query are handed in.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.access import Caller
from fluxserve.core.errors import (
    Conflict,
    ErrorCode,
    Failure,
    FluxserveError,
    InvalidRequest,
    NotFound,
    Problem,
    Rule,
)
from fluxserve.core.events import EventKind
from fluxserve.core.ids import parse_id, to_uuid
from fluxserve.core.ports import EncodedImage, Idempotency
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON, Origin, WebhookSpec
from fluxserve.dialects.base import Services, bearer, failed, read_object
from fluxserve.dialects.delivery import take_image
from fluxserve.dialects.fal import reading, words
from fluxserve.dialects.fal.apps import App, find_app
from fluxserve.dialects.fal.errors import error, error_headers, failure_of
from fluxserve.dialects.fal.words import NAME
from fluxserve.dialects.receivers import check_receiver
from fluxserve.dialects.sse import stream
from fluxserve.dialects.wire import Answer

NO_STORE = {"Cache-Control": "no-store"}
STREAM = "/stream"
WEBHOOK_URL_MAX = 2083
PREVIEWS = 4  # of one streamed run, about
START_MAX_S = 86_400.0


async def caller_of(services: Services, request: Request) -> Caller:
    """Unauthenticated for a missing or wrong `Authorization: Key KEY` (or Bearer)."""
    return await services.keyring.caller(bearer(request, "key", "bearer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call, wherever it came in."""

    request: Request
    path: str  # behind the host's root: an app, or an app with /requests/...
    query: Mapping[str, str]


def query_of(text: str) -> dict[str, str]:
    """A query string, read as far as it can be."""
    return dict(parse_qsl(text[:16_384], keep_blank_values=True, max_num_fields=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The calls under one mount."""

    services: Services
    mount: str

    # --- the queue -------------------------------------------------------------------------------

    async def queue(self, ask: Ask) -> Response:
        """Everything at the queue's host."""
        before, found, after = ask.path.strip("/").partition("/requests/")
        if not found:
            if ask.request.method != "POST":
                return _wrong_method("POST")
            return await self.submit(ask)
        id_, _, what = after.partition("/")
        short = "/".join(part for part in before.split("/")[:3] if part)
        match what, ask.request.method:
            case "", "GET" | "HEAD" | "POST":
                return await self.result(ask, id_)
            case "status", "GET" | "HEAD" | "POST":
                return await self.status(ask, short, id_)
            case "status/stream", "GET":
                return await self.watch(ask, short, id_)
            case "cancel", "PUT" | "POST":
                return await self.cancel(ask, id_)
            case "" | "status" | "status/stream" | "cancel", _:
                return _wrong_method("PUT" if what == "cancel" else "GET")
        raise NotFound("there is nothing at this path")

    async def submit(self, ask: Ask) -> Response:
        caller = await caller_of(self.services, ask.request)
        app = find_app(self.services.catalog, ask.path)
        webhook = _webhook(ask.query)
        check_receiver(self.services, webhook, "fal_webhook")
        prediction = await self._create(ask, app, caller, webhook=webhook)
        outlook = await self.services.predictions.outlook(prediction)
        links = self.services.links(ask.request, self.mount)
        body = words.accepted(prediction, app.short, outlook.queue_position, links)
        return Answer(body, headers=_headers(prediction))

    async def status(self, ask: Ask, short: str, text: str) -> Response:
        caller = await caller_of(self.services, ask.request)
        prediction = await self._find(text, caller)
        body = await self._status(ask, short, prediction)
        status = 200 if prediction.is_terminal else 202
        return Answer(body, status, headers=_headers(prediction))

    async def watch(self, ask: Ask, short: str, text: str) -> Response:
        """The status at every change, as an event stream."""
        caller = await caller_of(self.services, ask.request)
        first = await self._find(text, caller)

        async def events() -> AsyncIterator[ServerSentEvent]:
            body = await self._status(ask, short, first)
            yield _event(body)
            if first.is_terminal:
                return
            try:
                async for _ in self.services.predictions.follow(first.id):
                    now = await self.services.predictions.get(first.id)
                    fresh = await self._status(ask, short, now)
                    if fresh != body:
                        body = fresh
                        yield _event(body)
                    if now.is_terminal:
                        return
            except NotFound:  # deleted while it was watched
                return

        return stream(events(), _headers(first))

    async def result(self, ask: Ask, text: str) -> Response:
        caller = await caller_of(self.services, ask.request)
        prediction = await self._find(text, caller)
        if not prediction.is_terminal:
            text = "Request is still in progress"
            body = {"detail": text, "message": text}
            return Answer(body, 400, headers=_headers(prediction))
        return await self._outcome(prediction, ask.request)

    async def cancel(self, ask: Ask, text: str) -> Response:
        caller = await caller_of(self.services, ask.request)
        try:
            before = await self._find(text, caller)
        except NotFound:
            return Answer({"status": "NOT_FOUND"}, 404, headers=NO_STORE)
        after = await self.services.predictions.cancel(before.id, caller)
        is_late = before.is_terminal or after.status is not PredictionStatus.CANCELED
        word = "ALREADY_COMPLETED" if is_late else "CANCELLATION_REQUESTED"
        return Answer({"status": word}, 400 if is_late else 202, headers=_headers(before))

    # --- run -------------------------------------------------------------------------------------

    async def run(self, ask: Ask) -> Response:
        """Everything at the run host: an app, or an app and /stream."""
        if ask.request.method != "POST":
            return _wrong_method("POST")
        caller = await caller_of(self.services, ask.request)
        path = ask.path.rstrip("/")
        if path.endswith(STREAM):
            app = find_app(self.services.catalog, path.removesuffix(STREAM))
            prediction = await self._create(ask, app, caller, is_streamed=True)
            return stream(self._events(prediction, ask.request), _headers(prediction))
        app = find_app(self.services.catalog, path)
        prediction = await self._create(ask, app, caller)
        done = await self._wait(prediction)
        if not done.is_terminal:
            text = f"The output is not there yet; request {to_uuid(done.id)} goes on in the queue"
            late = Failure(code=ErrorCode.TIMED_OUT, message=text)
            return _with(failed(late, error, error_headers), done)
        return await self._outcome(done, ask.request)

    async def _wait(self, prediction: Prediction) -> Prediction:
        """The finished prediction, or as it is when waiting or its time to start is over."""
        loop, now = asyncio.get_running_loop(), prediction
        end = loop.time() + self.services.http.wait_max_s
        while not now.is_terminal and (left_s := end - loop.time()) > 0:
            start_s = self._start_left_s(now)
            pause = left_s if start_s is None else min(left_s, start_s)
            # A loop's clock may be coarse: the wait can end just before the time to start does.
            now = await self._in_time(await self.services.predictions.wait(now.id, pause))
            if self.services.predictions.is_closing:
                break
        return now

    async def _events(
        self, prediction: Prediction, request: Request
    ) -> AsyncIterator[ServerSentEvent]:
        """Previews as outputs on their way, then the output or the error."""
        try:
            async for event in self.services.predictions.follow(prediction.id):
                live = self.services.live.get(prediction.id)
                if event.kind is EventKind.PREVIEW and live and live.preview:
                    uri = await asyncio.to_thread(_uri, live.preview)
                    yield _event(words.partial(prediction, live.preview, uri))
            now = await self.services.predictions.get(prediction.id)
            failure = failure_of(now)
            if not now.is_terminal:
                text = "the server is going down; the request goes on when it is back"
                failure = Failure(code=ErrorCode.UNAVAILABLE, message=text)
            body = words.broken(failure) if failure else await self._output(now, request)
        except FluxserveError as problem:  # deleted while it was watched
            body = words.broken(problem.failure())
        yield _event(body)

    # --- parts -----------------------------------------------------------------------------------

    async def _create(
        self,
        ask: Ask,
        app: App,
        caller: Caller,
        *,
        webhook: WebhookSpec | None = None,
        is_streamed: bool = False,
    ) -> Prediction:
        await self.services.limiter.hit(caller, "create")
        request = ask.request
        start_s = _start_s(request)
        body = await read_object(request, self.services.http.body_max_bytes)
        idempotency = _idempotency(request, app.id, body)
        texts = reading.pictures_in(app.form, body)
        asked = reading.read(app.form, body)
        urls = {name: text for name, text in texts.items() if _is_url(text)}
        known = {field.name for field in app.form.fields} | {"image_size"}
        said = {name: value for name, value in body.items() if name in known and value is not None}
        base = self.services.links(request, self.mount).base
        pictures = {
            name: await take_image(self.services, texts.pop(name), name, caller, base)
            for name in list(texts)
        }
        extra: dict[str, JSON] = {"sync_mode": asked.values.get("sync_mode") is True}
        if start_s is not None:
            start_by = self.services.clock() + timedelta(seconds=start_s)
            extra["start_by"] = start_by.isoformat()
        origin = Origin(
            dialect=NAME,
            model_name=app.id,
            key_id=caller.key_id,
            tenant_id=caller.tenant_id,
            base_url=base,
            mount=self.mount,
            said={**said, **urls},
            extra=extra,
            webhook=webhook,
        )
        params = reading.to_params(app, asked, pictures)
        if is_streamed:
            params = reading.with_previews(params, app, PREVIEWS)
        try:
            return await self.services.predictions.create(
                params, origin, caller, idempotency=idempotency
            )
        except InvalidRequest as problem:
            raise reading.in_said_words(asked, problem) from problem

    async def _find(self, text: str, caller: Caller) -> Prediction:
        id_ = parse_id(text)
        if id_ is None:
            raise NotFound("Request not found")
        try:
            prediction = await self.services.predictions.get(id_, caller)
        except NotFound:
            raise NotFound("Request not found") from None
        return await self._in_time(prediction)

    async def _in_time(self, prediction: Prediction) -> Prediction:
        """The prediction, given up if the time that its caller gave it to start is over."""
        while self._start_left_s(prediction) == 0:
            try:
                return await self.services.predictions.expire(prediction)
            except Conflict:  # it started just now, or something else about it was noted
                prediction = await self.services.predictions.get(prediction.id)
        return prediction

    def _start_left_s(self, prediction: Prediction) -> float | None:
        """Seconds in which it must still start; None if it has, or may at any time."""
        start_by = _start_by(prediction)
        if start_by is None or prediction.status is not PredictionStatus.QUEUED:
            return None
        return max(0.0, (start_by - self.services.clock()).total_seconds())

    async def _status(self, ask: Ask, short: str, prediction: Prediction) -> dict[str, JSON]:
        position = 0
        if prediction.status is PredictionStatus.QUEUED:
            position = (await self.services.predictions.outlook(prediction)).queue_position
        with_logs = ask.query.get("logs", "").lower() in ("1", "true")
        links = self.services.links(ask.request, self.mount)
        return words.status(prediction, short, links, position=position, with_logs=with_logs)

    async def _outcome(self, prediction: Prediction, request: Request) -> Response:
        if failure := failure_of(prediction):
            answer = failed(failure, error, error_headers)
            return _with(answer, prediction)
        return Answer(await self._output(prediction, request), headers=_headers(prediction))

    async def _output(self, prediction: Prediction, request: Request) -> dict[str, JSON]:
        """The bare output; pictures as data URIs where `sync_mode` was said."""
        origin = prediction.origin
        if origin.dialect != NAME or origin.extra.get("sync_mode") is not True:
            links = self.services.links(request, self.mount)
            return words.output(prediction, words.links_of(prediction, links))
        urls = []
        for image in prediction.shown:
            blob = image.blob
            data = await self.services.blobs.get(blob.key)
            picture = EncodedImage(data=data, mime=blob.mime, width=blob.width, height=blob.height)
            urls.append(await asyncio.to_thread(_uri, picture))
        return words.output(prediction, urls)


def _headers(prediction: Prediction) -> dict[str, str]:
    return {**NO_STORE, "x-fal-request-id": to_uuid(prediction.id)}


def _with(answer: Response, prediction: Prediction) -> Response:
    answer.headers.update(_headers(prediction))
    return answer


def _event(body: JSON) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps(body, separators=(",", ":")))


def _uri(image: EncodedImage) -> str:
    return f"data:{image.mime};base64,{base64.b64encode(image.data).decode()}"


def _wrong_method(right: str) -> Response:
    text = "Method Not Allowed"
    return Answer({"detail": text, "message": text}, 405, {"Allow": right})


def _is_url(text: str) -> bool:
    return text.strip()[:8].lower().startswith(("http://", "https://"))


def _webhook(query: Mapping[str, str]) -> WebhookSpec | None:
    url = query.get("fal_webhook", "").strip()
    if not url:
        return None
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_web = False
    if not is_web or len(url) > WEBHOOK_URL_MAX or any(sign.isspace() for sign in url):
        raise _bad("fal_webhook", f"an http or https URL of at most {WEBHOOK_URL_MAX} characters")
    return WebhookSpec(url=url)


def _start_s(request: Request) -> float | None:
    """Seconds until a request must have started, as X-Fal-Request-Timeout says; InvalidRequest."""
    text = request.headers.get("x-fal-request-timeout", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds <= START_MAX_S:
        raise _bad("X-Fal-Request-Timeout", f"seconds, more than 0 and at most {START_MAX_S:g}")
    return seconds


def _start_by(prediction: Prediction) -> datetime | None:
    text = prediction.origin.extra.get("start_by")
    is_ours = prediction.origin.dialect == NAME and isinstance(text, str)
    return datetime.fromisoformat(str(text)) if is_ours else None


def _idempotency(request: Request, app: str, body: Mapping[str, JSON]) -> Idempotency | None:
    key = request.headers.get("idempotency-key", "").strip()
    if not key:
        return None
    if len(key) > 255:
        raise _bad("Idempotency-Key", "at most 255 characters")
    asked = f"{app}\n{json.dumps(body, sort_keys=True)}"
    return Idempotency(key=key, body_hash=hashlib.sha256(asked.encode()).hexdigest())


def _bad(name: str, message: str) -> InvalidRequest:
    return InvalidRequest.of([Problem(field=name, rule=Rule.OTHER, message=message)])
