"""BFL's routes: submit, poll, what an account may ask, and the two calls that BFL does not have."""

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.access import Caller
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import (
    InvalidRequest,
    NotFound,
    Problem,
    Rule,
    Unauthenticated,
    UnknownModel,
)
from fluxserve.core.ids import parse_id
from fluxserve.core.ports import Idempotency, Query
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import JSON, ImageInput, Origin, WebhookSpec
from fluxserve.core.schema import Field, Kind, check
from fluxserve.dialects.base import ErrorShape, Services, answering, read_object
from fluxserve.dialects.bfl import alpha, forms, query, words
from fluxserve.dialects.bfl.errors import error, gateway_error
from fluxserve.dialects.bfl.forms import Form
from fluxserve.dialects.delivery import delivery_routes, take_image
from fluxserve.dialects.receivers import check_receiver
from fluxserve.dialects.wire import Answer, Shown, dump, told

NAME = "bfl"
GATEWAY = "/flux/v1"  # resellers' mount, with their errors
COMFY = "/proxy/bfl"  # ComfyUI's mount: submits end in /generate
SHARED = "/v1"  # other dialects live here too: no catch-all
MOUNTS = (SHARED, GATEWAY, "/bfl/v1", COMFY)

CREDITS_WITHOUT_BUDGET = 1_000_000.0
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NO_STORE = {"Cache-Control": "no-store"}
LICENSE_FIELDS = (Field(name="number_of_generations", kind=Kind.INTEGER, min=0, default=1),)

Call = Callable[[Request], Awaitable[Response]]


def names(catalog: Catalog) -> list[str]:
    """The endpoints: every public name of a model that has no owner before it."""
    found = (name for card in catalog.cards() for name in card.names if "/" not in name)
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The handlers under one mount."""

    services: Services
    mount: str
    looks: Shown = dataclass_field(default_factory=Shown)

    @property
    def error(self) -> ErrorShape:
        return gateway_error if self.mount == GATEWAY else error

    def routes(self) -> Sequence[Route]:
        suffix = "/generate" if self.mount == COMFY else ""
        submits = [
            self._route(f"/{name}{suffix}", POST=self._submit(name))
            for name in names(self.services.catalog)
        ]
        rest = [] if self.mount == SHARED else [self._everything_else()]
        return [
            *submits,
            self._route(f"/flux-{{name}}{suffix}", POST=self.no_model),
            self._route(f"/flux-{{name}}/{{tool}}{suffix}", POST=self.no_model),
            self._route("/get_result", GET=self.get_result),
            self._route("/cancel", POST=self.cancel),
            self._route("/tasks", GET=self.tasks),
            self._route("/credits", GET=self.credits),
            self._route("/my_finetunes", GET=self.my_finetunes),
            self._route("/finetune_details", GET=self.no_finetune),
            self._route("/delete_finetune", POST=self.no_finetune),
            self._route("/finetune", POST=self.no_finetune),
            self._route("/licenses/models/{slug}/usage", POST=self.license_usage),
            *self._files(),
            *rest,
        ]

    # --- submit ----------------------------------------------------------------------------------

    def _submit(self, name: str) -> Call:
        async def submit(request: Request) -> Response:
            return await self.submit(request, name)

        return submit

    async def submit(self, request: Request, name: str) -> Response:
        caller = await self._caller(request)
        await self.services.limiter.hit(caller, "create")
        links = self.services.links(request, self.mount)
        body = await read_object(request, self.services.http.body_max_bytes)
        idempotency = _idempotency(request, name, body)
        form = forms.form_of(name)
        texts, problems = forms.pictures_in(form, body)
        checked = forms.read(form, body)
        problems += checked.problems
        webhook = _webhook(checked.values, problems)
        if problems:
            raise InvalidRequest.of(problems)
        check_receiver(self.services, webhook, "webhook_url")
        urls = {key: text for key, text in texts.items() if is_url(text)}
        pictures = await self._take(form, texts, caller, links.base)
        origin = Origin(
            dialect=NAME,
            model_name=name,
            key_id=caller.key_id,
            tenant_id=caller.tenant_id,
            base_url=links.base,
            mount=self.mount,
            said={**_said(form, body), **urls},
            extra={"webhook_status": self.services.http.bfl_webhook_status} if webhook else {},
            webhook=webhook,
        )
        try:
            prediction = await self.services.predictions.create(
                forms.to_params(name, form, checked.values, pictures),
                origin,
                caller,
                idempotency=idempotency,
            )
        except InvalidRequest as problem:
            raise _in_their_words(form, problem, pictures) from problem
        cost_micro = self.services.price_book.cost(prediction.engine, prediction.request)
        return Answer(words.accepted(prediction, links, cost_micro))

    async def no_model(self, request: Request) -> Response:
        name = f"flux-{'/'.join(request.path_params.values())}"
        raise UnknownModel(f"There is no model named {name[:200]!r}")

    async def _take(
        self, form: Form, texts: dict[str, str], caller: Caller, base: str
    ) -> dict[str, ImageInput]:
        """Store the pictures one by one, letting go of each text; InvalidRequest."""
        pictures = {}
        for name in list(texts):
            taken = await take_image(self.services, texts.pop(name), name, caller, base)
            pictures[forms.own_name(form, name)] = taken
        problems = forms.judge_pictures(form, pictures)
        if not problems and form is forms.FILL and "mask" not in pictures:
            problems = await self._judge_alpha(pictures["image"])
        if problems:
            raise InvalidRequest.of(problems)
        return pictures

    async def _judge_alpha(self, image: ImageInput) -> list[Problem]:
        """Without a mask, the transparent part is repainted: there must be an alpha channel."""
        if image.blob is None:
            return []  # not fetched yet: the engine finds out
        end = min(alpha.HEAD_BYTES, image.blob.size_bytes)
        if alpha.has_alpha(await self.services.blobs.get_range(image.blob.key, 0, end)):
            return []
        message = "a mask is required, because the image has no alpha channel that could be one"
        return [Problem(field="mask", rule=Rule.OTHER, message=message)]

    # --- poll ------------------------------------------------------------------------------------

    async def get_result(self, request: Request) -> Response:
        """Needs no key. A poll that comes too early is held for a moment."""
        asked = request.query_params.get("id", "").strip()
        if not asked:
            raise query.no_id()
        wait_s = query.wait_s(request)
        try:
            prediction = await self._find(asked, await self._anyone(request))
            if not prediction.is_terminal:
                hold_s = max(wait_s, self.services.http.bfl_poll_hold_s)
                if hold_s > 0:
                    prediction = await self.services.predictions.wait(prediction.id, hold_s)
        except NotFound:
            return self._unknown(asked)
        if prediction.data_removed:
            return self._unknown(asked)
        links = self.services.links(request, self.mount)
        if "include" not in request.query_params:
            known = self.looks.get(prediction, links)
            if known is None:
                known = self.looks.keep(prediction, links, dump(words.polled(prediction, links)))
            return told(known, 200, NO_STORE)
        body = words.polled(prediction, links)
        if "base64" in request.query_params.get("include", "").split(","):
            body = await self._with_bytes(prediction, body)
        return Answer(body, headers=NO_STORE)

    async def cancel(self, request: Request) -> Response:
        """Ours: POST ?id=, or the id in the body. Answers like a poll."""
        caller = await self._caller(request)
        asked = request.query_params.get("id", "").strip()
        if not asked:
            body = await read_object(request, self.services.http.body_max_bytes)
            asked = str(body.get("id") or "").strip()
        if not asked:
            raise query.no_id()
        try:
            found = await self._find(asked, caller)
            prediction = await self.services.predictions.cancel(found.id, caller)
        except NotFound:
            return self._unknown(asked)
        links = self.services.links(request, self.mount)
        return Answer(words.polled(prediction, links), headers=NO_STORE)

    async def tasks(self, request: Request) -> Response:
        """Ours: GET ?limit=&after=, the caller's tasks, newest first; `next` goes into `after`."""
        caller = await self._caller(request)
        await self.services.limiter.hit(caller, "read")
        limit = query.limit(request)
        cursor = None
        if after := request.query_params.get("after", "").strip():
            last = await self._find(after, caller)
            cursor = (last.created_at, last.id)
        key_id = None if caller.is_admin else caller.key_id
        asked = Query(key_id=key_id, cursor=cursor, limit=limit + 1)
        rows = await self.services.predictions.page(asked)
        links = self.services.links(request, self.mount)
        shown = [words.polled(row, links) for row in rows[:limit]]
        more = shown[-1]["id"] if len(rows) > limit else None
        return Answer({"tasks": shown, "next": more}, headers=NO_STORE)

    # --- the account -----------------------------------------------------------------------------

    async def credits(self, request: Request) -> Response:
        caller = await self._caller(request)
        await self.services.limiter.hit(caller, "read")
        micro = await self.services.accounts.balance_micro(caller)
        left = CREDITS_WITHOUT_BUDGET if micro is None else micro / words.CREDIT_MICRO
        return Answer({"credits": left})

    async def my_finetunes(self, request: Request) -> Response:
        await self._caller(request)
        return Answer({"finetunes": []})

    async def no_finetune(self, request: Request) -> Response:
        await self._caller(request)
        raise NotFound("There are no finetunes here: this server trains no models")

    async def license_usage(self, request: Request) -> Response:
        """Reports of how often open weights were used: taken, and kept nowhere."""
        await self._caller(request)
        body = await read_object(request, self.services.http.body_max_bytes)
        checked = check(LICENSE_FIELDS, body, lenient=True)
        if checked.problems:
            raise InvalidRequest.of(checked.problems)
        return Answer({"status": "ok"})

    # --- parts -----------------------------------------------------------------------------------

    async def _caller(self, request: Request) -> Caller:
        secret = secret_of(request)
        try:
            return await self.services.keyring.caller(secret)
        except Unauthenticated as problem:
            message = "Not authenticated"
            if problem.was_given:
                message += " - Invalid Authentication"
            raise Unauthenticated(message, was_given=problem.was_given) from problem

    async def _anyone(self, request: Request) -> Caller | None:
        """The caller if a good key was sent, else None: whoever has the id."""
        try:
            return await self.services.keyring.caller(secret_of(request))
        except Unauthenticated:
            return None

    async def _find(self, text: str, caller: Caller | None) -> Prediction:
        id_ = parse_id(text)
        if id_ is None:
            raise NotFound(words.NOT_FOUND)
        return await self.services.predictions.get(id_, caller)

    async def _with_bytes(self, prediction: Prediction, body: dict[str, JSON]) -> dict[str, JSON]:
        image, result = words.picture_of(prediction), body["result"]
        if image is None or not isinstance(result, Mapping):
            return body
        data = await self.services.blobs.get(image.blob.key)
        return {**body, "result": {**result, "sample_base64": base64.b64encode(data).decode()}}

    def _unknown(self, asked: str) -> Response:
        body = words.unknown_task(asked)
        if self.mount == GATEWAY:
            body["error"] = {"message": words.NOT_FOUND, "type": "404"}
        return Answer(body, 404, NO_STORE)

    def _route(self, path: str, **calls: Call) -> Route:
        """One path for all methods, so that a wrong one is answered in BFL's shape too."""
        if "GET" in calls:
            calls["HEAD"] = calls["GET"]

        async def answer(request: Request) -> Response:
            call = calls.get(request.method)
            return self._wrong_method(calls) if call is None else await call(request)

        return Route(f"{self.mount}{path}", answering(self.error)(answer), methods=METHODS)

    def _wrong_method(self, calls: Mapping[str, Call]) -> Response:
        text = "Method Not Allowed"
        body: dict[str, JSON] = {"detail": text, "message": text}
        if self.mount == GATEWAY:
            body["error"] = {"message": text, "type": "405"}
        return Answer(body, 405, {"Allow": ", ".join(calls)})

    def _files(self) -> Sequence[Route]:
        """Signed links under the mount, for proxies that hand on nothing else."""
        found = delivery_routes(self.services)
        return [
            Route(f"{self.mount}{route.path}", route.endpoint, methods=list(route.methods or ()))
            for route in found
        ]

    def _everything_else(self) -> Route:
        async def nothing(request: Request) -> Response:
            raise NotFound("Not Found")

        path = f"{self.mount}/{{rest:path}}"
        return Route(path, answering(self.error)(nothing), methods=METHODS)


def secret_of(request: Request) -> str | None:
    """The key: `x-key`, else `Authorization` with or without a scheme, else `X-API-Key`."""
    headers = request.headers
    if key := headers.get("x-key", "").strip():
        return key
    if authorization := headers.get("authorization", "").strip():
        return authorization.split()[-1]
    return headers.get("x-api-key", "").strip() or None


def is_url(text: str) -> bool:
    return text.lstrip()[:8].lower().startswith(("http://", "https://"))


def _webhook(values: Mapping[str, JSON], problems: list[Problem]) -> WebhookSpec | None:
    url = values.get("webhook_url")
    if not isinstance(url, str):
        return None
    secret = values.get("webhook_secret")
    try:
        parts = urlsplit(url.strip())
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_web = False
    if not is_web or any(character.isspace() for character in url.strip()):
        message = "Input should be a valid http or https URL"
        problems.append(Problem(field="webhook_url", rule=Rule.OTHER, message=message))
        return None
    return WebhookSpec(url=url.strip(), secret=secret if isinstance(secret, str) else None)


def _said(form: Form, body: Mapping[str, JSON]) -> dict[str, JSON]:
    """The input as received: known fields, without inline pictures and without the secret."""
    known = {field.name for field in form.fields} - {"webhook_url", "webhook_secret"}
    return {name: value for name, value in body.items() if name in known and value is not None}


def _idempotency(request: Request, name: str, body: Mapping[str, JSON]) -> Idempotency | None:
    key = request.headers.get("idempotency-key", "").strip()
    if not key:
        return None
    if len(key) > 255:
        raise InvalidRequest("Idempotency-Key: at most 255 characters", field="Idempotency-Key")
    asked = f"{name}\n{json.dumps(body, sort_keys=True)}"
    return Idempotency(key=key, body_hash=hashlib.sha256(asked.encode()).hexdigest())


def _in_their_words(
    form: Form, problem: InvalidRequest, pictures: Mapping[str, ImageInput]
) -> InvalidRequest:
    found = forms.renamed(form, problem.problems, pictures)
    return InvalidRequest.of(found) if found else problem
