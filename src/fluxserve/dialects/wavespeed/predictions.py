"""WaveSpeed's predictions: submit (at once or waiting), result, list, delete, cancel."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.access import Caller
from fluxserve.core.errors import InvalidRequest, NotFound, Problem, Rule, UnknownModel
from fluxserve.core.ids import parse_id
from fluxserve.core.ports import Idempotency, Query
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import JSON, ImageInput, Origin, WebhookSpec
from fluxserve.core.schema import Field, Kind, check
from fluxserve.dialects.base import Services, bearer, read_object
from fluxserve.dialects.delivery import take_image
from fluxserve.dialects.links import Links
from fluxserve.dialects.receivers import check_receiver
from fluxserve.dialects.wavespeed import reading, words
from fluxserve.dialects.wavespeed.errors import NO_STORE, envelope, success
from fluxserve.dialects.wavespeed.forms import Form, Model
from fluxserve.dialects.wire import Shown, dump, told

NAME = "wavespeed"
WAIT_MAX_S = 5.0  # a client gives up on a poll after 10 s
WEBHOOK_URL_MAX = 2083
DELETED_MAX = 1000  # ids in one call
CHUNK = 500  # rows read at once on the way to a page
PAGE_MAX = 1000
OWN_QUERY = ("webhook", "wait")

LIST_FIELDS = (
    Field(name="page", kind=Kind.INTEGER, min=1, max=PAGE_MAX, default=1),
    Field(name="page_size", kind=Kind.INTEGER, min=1, max=100, default=100),
    Field(name="model", kind=Kind.STRING),
    Field(name="status", kind=Kind.STRING),
    Field(name="created_after", kind=Kind.STRING),
    Field(name="created_before", kind=Kind.STRING),
)
DELETE_FIELDS = (
    Field(name="ids", kind=Kind.ARRAY, items=Kind.STRING, max_items=DELETED_MAX, default=()),
)


async def caller_of(services: Services, request: Request) -> Caller:
    """Unauthenticated for a missing or wrong `Authorization: Bearer KEY`."""
    return await services.keyring.caller(bearer(request))


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The handlers under one mount."""

    services: Services
    mount: str
    models: Mapping[str, Model] = field(default_factory=dict)
    looks: Shown = field(default_factory=Shown)

    # --- submit ----------------------------------------------------------------------------------

    async def submit(self, request: Request, name: str) -> Response:
        caller = await caller_of(self.services, request)
        model = self.models.get(name.lower())
        if model is None:
            raise UnknownModel(f"there is no model named {name[:200]!r}", field="model")
        await self.services.limiter.hit(caller, "create")
        links = self.services.links(request, self.mount)
        body = await read_object(request, self.services.http.body_max_bytes)
        idempotency = _idempotency(request, name, body)
        query = str(request.url.query)
        webhook = webhook_of(query, body.pop("webhook_url", None))
        is_in_query = "&webhook=" in f"&{query}"
        check_receiver(self.services, webhook, "webhook" if is_in_query else "webhook_url")
        texts, problems = reading.pictures_in(model.form, body)
        checked = reading.read(model.form, body, texts)
        problems += checked.problems
        if problems:
            raise InvalidRequest.of(problems)
        said = {**_said(model.form, body), **_urls(texts)}
        origin = Origin(
            dialect=NAME,
            model_name=name,
            key_id=caller.key_id,
            tenant_id=caller.tenant_id,
            base_url=links.base,
            mount=self.mount,
            said=said,
            extra={"base64": True} if checked.values["enable_base64_output"] else {},
            webhook=webhook,
        )
        pictures = await self._take(texts, caller, links.base)
        params = reading.to_params(model, checked.values, pictures)
        try:
            prediction = await self.services.predictions.create(
                params, origin, caller, idempotency=idempotency
            )
        except InvalidRequest as problem:
            raise in_their_words(model.form, problem) from problem
        if checked.values["enable_sync_mode"]:
            return await self._wait(prediction, links)
        return success(await self._shown(prediction, links))

    async def _take(
        self, texts: dict[str, str], caller: Caller, base: str
    ) -> dict[str, ImageInput]:
        """Store the pictures one by one, letting go of each text; InvalidRequest."""
        return {
            name: await take_image(self.services, texts.pop(name), name, caller, base)
            for name in list(texts)
        }

    async def _wait(self, prediction: Prediction, links: Links) -> Response:
        """Sync mode: the end of the task, or word that it still runs."""
        seconds = self.services.http.sync_timeout_s
        prediction = await self.services.predictions.wait(prediction.id, seconds)
        shown = await self._shown(prediction, links)
        if prediction.is_terminal:
            return success(shown)
        return success(words.still_running(shown, seconds))

    # --- look, cancel, delete --------------------------------------------------------------------

    async def result(self, request: Request) -> Response:
        caller = await caller_of(self.services, request)
        prediction = await self._find(request.path_params["id"], caller)
        wait_s = _wait_s(request)
        if wait_s and not prediction.is_terminal:
            prediction = await self.services.predictions.wait(prediction.id, wait_s)
        links = self.services.links(request, self.mount)
        if prediction.origin.extra.get("base64"):
            return success(await self._shown(prediction, links))
        body = self.looks.get(prediction, links)
        if body is None:
            shown = dump(envelope(await self._shown(prediction, links)))
            body = self.looks.keep(prediction, links, shown)
        return told(body, 200, NO_STORE)

    async def cancel(self, request: Request) -> Response:
        caller = await caller_of(self.services, request)
        found = await self._find(request.path_params["id"], caller)
        prediction = await self.services.predictions.cancel(found.id, caller)
        return success(await self._shown(prediction, self.services.links(request, self.mount)))

    async def page(self, request: Request) -> Response:
        """One page of the caller's predictions, of every dialect, newest first."""
        caller = await caller_of(self.services, request)
        await self.services.limiter.hit(caller, "read")
        body = await read_object(request, self.services.http.body_max_bytes)
        checked = check(LIST_FIELDS, body, lenient=True)
        problems = list(checked.problems)
        query = _query(checked.values, caller, problems)
        if problems:
            raise InvalidRequest.of(problems)
        page, size = checked.values["page"], checked.values["page_size"]
        assert isinstance(page, int), "the table says so"
        assert isinstance(size, int), "the table says so"
        if checked.values["status"] == words.DELETED:
            return success({"page": page, "total": 0, "items": []})  # nothing of them is kept
        total = await self.services.predictions.count(query)
        rows: Sequence[Prediction] = []
        if (page - 1) * size < total:
            rows = await self._rows(query, skip=(page - 1) * size, count=size)
        links = self.services.links(request, self.mount)
        items = [words.render(row, links) for row in rows]
        return success({"page": page, "total": total, "items": items})

    async def _rows(self, query: Query, *, skip: int, count: int) -> Sequence[Prediction]:
        """`count` rows after the first `skip` ones, walking by cursor."""
        while skip > 0:
            step = min(skip, CHUNK)
            passed = await self.services.predictions.page(replace(query, limit=step))
            if len(passed) < step:
                return []
            query = replace(query, cursor=(passed[-1].created_at, passed[-1].id))
            skip -= step
        return await self.services.predictions.page(replace(query, limit=count))

    async def delete(self, request: Request) -> Response:
        """Forget finished predictions, cancel and forget others; unknown ids are skipped."""
        caller = await caller_of(self.services, request)
        body = await read_object(request, self.services.http.body_max_bytes)
        checked = check(DELETE_FIELDS, body)
        if checked.problems:
            raise InvalidRequest.of(checked.problems)
        ids = checked.values["ids"]
        if not isinstance(ids, Sequence) or not ids:
            problem = Problem(field="ids", rule=Rule.REQUIRED, message="ids is required")
            raise InvalidRequest.of([problem])
        count = 0
        for text in dict.fromkeys(str(item) for item in ids):
            try:
                prediction = await self._find(text, caller)
                await self.services.predictions.delete(prediction.id, caller)
            except NotFound:
                continue
            count += 1
        return success({"deleted_count": count})

    # --- parts -----------------------------------------------------------------------------------

    async def _find(self, text: str, caller: Caller) -> Prediction:
        id_ = parse_id(text)
        if id_ is None:
            raise NotFound("prediction not found")
        try:
            return await self.services.predictions.get(id_, caller)
        except NotFound:
            raise NotFound("prediction not found") from None

    async def _shown(self, prediction: Prediction, links: Links) -> dict[str, JSON]:
        """The prediction object; outputs as data URIs where its creator asked for them."""
        shown = words.render(prediction, links)
        if not prediction.origin.extra.get("base64") or prediction.origin.dialect != NAME:
            return shown
        outputs = []
        for _, image in words.pictures_of(prediction):
            data = await self.services.blobs.get(image.blob.key)
            outputs.append(f"data:{image.blob.mime};base64,{base64.b64encode(data).decode()}")
        return {**shown, "outputs": outputs}


def webhook_of(query: str, in_body: JSON) -> WebhookSpec | None:
    """The webhook of a submit: `?webhook=`, else `webhook_url` in the body; InvalidRequest.

    An older client does not encode the value, so that the query of the webhook's own URL arrives
    as members of ours: what follows an unencoded value belongs to it.
    """
    _, found, after = f"&{query}".partition("&webhook=")
    if found:
        value, _, rest = after.partition("&")
        url = unquote(value).strip()  # a plus sign is one: no URL has spaces
        if "://" in value and rest:
            strays = [part for part in rest.split("&") if part.partition("=")[0] not in OWN_QUERY]
            url = "&".join([url, *strays])
        return _webhook(url, "webhook") if url else None
    if in_body is None or in_body == "":
        return None
    if not isinstance(in_body, str):
        words = "must be a URL"
        problem = Problem(field="webhook_url", rule=Rule.TYPE, message=words, expected="string")
        raise InvalidRequest.of([problem])
    return _webhook(in_body.strip(), "webhook_url")


def _webhook(url: str, name: str) -> WebhookSpec:
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_web = False
    if not is_web or len(url) > WEBHOOK_URL_MAX or any(sign.isspace() for sign in url):
        words = f"must be an http or https URL of at most {WEBHOOK_URL_MAX} characters"
        raise InvalidRequest.of([Problem(field=name, rule=Rule.OTHER, message=words)])
    return WebhookSpec(url=url)


def _said(form: Form, body: Mapping[str, JSON]) -> dict[str, JSON]:
    """The parameters as received: known ones, without inline pictures."""
    known = {item.name for item in form.fields}
    return {name: value for name, value in body.items() if name in known and value is not None}


def _urls(texts: Mapping[str, str]) -> dict[str, JSON]:
    """Pictures that were given as URLs, as they were given."""
    shown: dict[str, JSON] = {}
    many: list[JSON] = []
    for name, text in texts.items():
        if not text.lstrip()[:8].lower().startswith(("http://", "https://")):
            continue
        if name.startswith("images."):
            many.append(text)
        else:
            shown[name] = text
    if many:
        shown["images"] = many
    return shown


def _idempotency(request: Request, name: str, body: Mapping[str, JSON]) -> Idempotency | None:
    key = request.headers.get("idempotency-key", "").strip()
    if not key:
        return None
    if len(key) > 255:
        raise InvalidRequest("Idempotency-Key: at most 255 characters", field="Idempotency-Key")
    asked = f"{name}\n{json.dumps(body, sort_keys=True)}"
    return Idempotency(key=key, body_hash=hashlib.sha256(asked.encode()).hexdigest())


def in_their_words(form: Form, problem: InvalidRequest) -> InvalidRequest:
    found = reading.renamed(form, problem.problems)
    return InvalidRequest.of(found) if found else problem


def _query(values: Mapping[str, JSON], caller: Caller, problems: list[Problem]) -> Query:
    status, model = values.get("status"), values.get("model")
    if isinstance(status, str) and status and status not in (*words.STATUSES_OF, words.DELETED):
        text = f"must be one of {', '.join((*words.STATUSES_OF, words.DELETED))}"
        problems.append(Problem(field="status", rule=Rule.OTHER, message=text))
    return Query(
        key_id=None if caller.is_admin else caller.key_id,
        model_names=(model,) if isinstance(model, str) and model else (),
        statuses=words.STATUSES_OF.get(str(status or ""), ()),
        created_after=_time("created_after", values, problems),
        created_before=_time("created_before", values, problems),
    )


def _time(name: str, values: Mapping[str, JSON], problems: list[Problem]) -> datetime | None:
    """ISO 8601; without a zone it is UTC."""
    text = values.get(name)
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        at = datetime.fromisoformat(text.strip())
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        words = "must be a time such as 2026-05-04T10:30:00Z"
        problems.append(Problem(field=name, rule=Rule.OTHER, message=words))
        return None


def _wait_s(request: Request) -> float:
    """`?wait=` in seconds, at most 5; 0 where nothing was said."""
    if not request.scope["query_string"]:
        return 0.0
    text = request.query_params.get("wait")
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = float("nan")
    if not seconds >= 0:
        message = "must be a number of seconds"
        raise InvalidRequest.of([Problem(field="wait", rule=Rule.OTHER, message=message)])
    return min(seconds, WAIT_MAX_S)
