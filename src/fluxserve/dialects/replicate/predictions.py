"""POST and GET of predictions: create by model, version or deployment; get, list, cancel."""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.access import Caller
from fluxserve.core.errors import InvalidRequest, NotFound, Problem, Rule
from fluxserve.core.ids import parse_id
from fluxserve.core.ports import Query
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON, Origin
from fluxserve.dialects.base import Services
from fluxserve.dialects.links import Links
from fluxserve.dialects.receivers import check_receiver
from fluxserve.dialects.replicate.api import CREATE, NO_STORE, answer, called, page, resource
from fluxserve.dialects.replicate.body import Create, judge_size, read_create
from fluxserve.dialects.replicate.hold import Hold, read_cancel_after, read_prefer
from fluxserve.dialects.replicate.own import sized, take_pictures
from fluxserve.dialects.replicate.paging import neighbours, read_cursor
from fluxserve.dialects.replicate.params import check_input, in_their_words, to_params
from fluxserve.dialects.replicate.render import NAME, output, render
from fluxserve.dialects.replicate.shelf import Shelf
from fluxserve.dialects.wire import Shown, dump, told

PAGE = 100
FILE_CLIENTS = ("replicate-python/1.", "replicate-javascript/")
FILE_CLIENT_IF_BLOCKING = ("replicate/python 2.", "asyncreplicate/python 2.")


class Predictions:
    """The handlers; `mount` is where links point to."""

    def __init__(self, services: Services, shelf: Shelf, mount: str) -> None:
        self._services = services
        self._shelf = shelf
        self._mount = mount
        self._shown = Shown()

    def routes(self, prefix: str) -> list[Route]:
        services = self._services
        by_model = "/models/{owner}/{name}/predictions"
        deployed = "/deployments/{owner}/{name}/predictions"
        create = called(services, self.create, CREATE)
        return [
            resource(
                prefix + "/predictions",
                {"GET": called(services, self.list), "POST": create},
            ),
            resource(prefix + "/predictions/{id}", {"GET": called(services, self.get)}),
            resource(prefix + "/predictions/{id}/cancel", {"POST": called(services, self.cancel)}),
            resource(prefix + by_model, {"POST": create}),
            resource(prefix + deployed, {"POST": create}),
        ]

    async def create(self, request: Request, caller: Caller) -> Response:
        services = self._services
        links = services.links(request, self._mount)
        preferences = ", ".join(request.headers.getlist("prefer"))
        hold = read_prefer(preferences, request.headers.get("x-stainless-read-timeout"))
        deadline_s = read_cancel_after(request.headers.get("cancel-after"))
        made = await self._accept(request, caller, links, hold, deadline_s)
        shown = render(made, links)
        headers = {"Location": str(links.to(f"/predictions/{shown['id']}"))}
        if hold is None:
            return answer(shown, 201, headers)
        headers["Preference-Applied"] = hold.applied
        now = await services.predictions.wait(made.id, hold.seconds)
        if not now.is_terminal:
            # Every official client takes any other status than `starting` here for the end.
            return answer(render(_fresh(made), links), 202, headers)
        return answer(await self._show(request, now, links), 201, headers)

    async def get(self, request: Request, caller: Caller) -> Response:
        links = self._services.links(request, self._mount)
        found = await self._services.predictions.get(_id(request), caller)
        if found.outputs:  # shown inline to some clients and as links to others
            return answer(await self._show(request, found, links))
        body = self._shown.get(found, links)
        if body is None:
            body = self._shown.keep(found, links, dump(await self._show(request, found, links)))
        return told(body, 200, NO_STORE)

    async def cancel(self, request: Request, caller: Caller) -> Response:
        links = self._services.links(request, self._mount)
        ended = await self._services.predictions.cancel(_id(request), caller)
        return answer(await self._show(request, ended, links))

    async def list(self, request: Request, caller: Caller) -> Response:
        links = self._services.links(request, self._mount)
        asked = request.query_params
        here = read_cursor(asked.get("cursor"))
        source = asked.get("source") or ""
        if source not in ("", "web", "api"):
            raise _bad("source", 'source must be one of the following: "web"', Rule.CHOICE)
        filters = [
            (name, text)
            for name in ("created_after", "created_before", "source")
            if (text := asked.get(name))
        ]
        query = Query(
            key_id=None if caller.is_admin else caller.key_id,
            created_after=_time(asked.get("created_after"), "created_after"),
            created_before=_time(asked.get("created_before"), "created_before"),
            cursor=here.key if here else None,
            limit=PAGE + 1,
        )
        # Everything here was made through the API, so nothing has the source "web".
        rows = [] if source == "web" else await self._services.predictions.page(query)
        last = (rows[PAGE - 1].created_at, rows[PAGE - 1].id) if len(rows) > PAGE else None
        following, before = neighbours(links, "/predictions", filters, here, last)
        results = [self._worded(row, render(row, links)) for row in rows[:PAGE]]
        return answer(page(results, following, before))

    async def _accept(
        self,
        request: Request,
        caller: Caller,
        links: Links,
        hold: Hold | None,
        deadline_s: float | None,
    ) -> Prediction:
        services = self._services
        named = request.path_params.get("owner")
        name = f"{named}/{request.path_params['name']}" if named is not None else None
        body = await read_create(request, self._shelf, name, services.http.body_max_bytes)
        _judge_target(body, links)
        check_receiver(services, body.webhook, body.webhook_field)
        inputs = body.model.inputs
        values = check_input(inputs, body.input)
        taken = await take_pictures(services, links, caller, inputs, body.input)
        if values.text("outpaint") not in (None, "None"):
            await sized(services, taken, "image")
        said = taken.echo({key: body.input[key] for key in sorted(body.input)})
        assert isinstance(said, Mapping)
        judge_size(said, body.size_bytes)
        params = to_params(body.model.name, inputs, values, taken.pictures)
        origin = Origin(
            dialect=NAME,
            model_name=body.model.name,
            key_id=caller.key_id,
            tenant_id=caller.tenant_id,
            base_url=links.base,
            mount=links.mount,
            said=said,
            extra=_extra(body, "/deployments/" in request.scope["path"], hold is not None),
            webhook=body.webhook,
        )
        try:
            return await services.predictions.create(
                params, origin, caller, idempotency=body.idempotency, deadline_s=deadline_s
            )
        except InvalidRequest as error:
            raise in_their_words(error, inputs) from error

    async def _show(
        self, request: Request, prediction: Prediction, links: Links
    ) -> dict[str, JSON]:
        """One prediction, its pictures inline where the client could not use http links."""
        shown = self._worded(prediction, render(prediction, links))
        if prediction.outputs and not prediction.data_removed:
            agent = request.headers.get("user-agent", "")
            if wants_data(self._services.http.delivery, links.base, agent, prediction):
                shown["output"] = output(prediction, await data_uris(self._services, prediction))
        return shown

    def _worded(self, prediction: Prediction, shown: dict[str, JSON]) -> dict[str, JSON]:
        is_expired = prediction.status is PredictionStatus.EXPIRED
        if is_expired and self._services.http.literal_aborted:
            shown["status"] = "aborted"
        return shown


def wants_data(delivery: str, base: str, agent: str, prediction: Prediction) -> bool:
    """Whether outputs go inline: `run()` of the SDKs wraps only https links and data URIs."""
    if delivery != "auto":
        return delivery == "data"
    if base.startswith("https:"):
        return False
    agent = agent.lower()
    if agent.startswith(FILE_CLIENT_IF_BLOCKING):
        return prediction.origin.extra.get("blocking") is True
    return agent.startswith(FILE_CLIENTS)


async def data_uris(services: Services, prediction: Prediction) -> list[str]:
    """The pictures to show inline, in order."""
    found: list[str] = []
    for image in prediction.shown:
        data = await services.blobs.get(image.blob.key)
        text = await asyncio.to_thread(base64.b64encode, data)
        found.append(f"data:{image.blob.mime};base64,{text.decode()}")
    return found


def _extra(body: Create, is_deployed: bool, is_blocking: bool) -> Mapping[str, JSON]:
    extra: dict[str, JSON] = {
        **{name: value for name, value in body.echo.items() if name != "webhook_completed"},
        "list_output": body.model.inputs.has_list_output,
    }
    version = body.version or (None if body.model.is_official else body.model.version)
    if version:
        extra["version"] = version
    if is_deployed:
        extra["deployment"] = body.model.name
    if is_blocking:
        extra["blocking"] = True
    return extra


def _judge_target(body: Create, links: Links) -> None:
    """Refuse a webhook that leads to this server itself."""
    if body.webhook is None:
        return
    here, there = (urlsplit(url).netloc.lower() for url in (links.base, body.webhook.url))
    if here == there.rpartition("@")[2]:
        raise _bad(body.webhook_field, "must not lead to this server", Rule.FORMAT)


def _fresh(made: Prediction) -> Prediction:
    """As it was at the moment it was accepted, whatever it is by now."""
    return replace(
        made, status=PredictionStatus.QUEUED, started_at=None, finished_at=None, outputs=(), logs=""
    )


def _id(request: Request) -> str:
    id_ = parse_id(request.path_params["id"])
    if id_ is None:
        raise NotFound("there is no such prediction")
    return id_


def _time(text: str | None, name: str) -> datetime | None:
    if not text:
        return None
    try:
        # A plus sign that nobody escaped arrives as a space.
        text = text.strip().replace(" ", "+") if "T" in text else text.strip()
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _bad(name, "Does not match format 'date-time'", Rule.FORMAT) from None


def _bad(field: str, message: str, rule: Rule) -> InvalidRequest:
    return InvalidRequest.of([Problem(field=field, rule=rule, message=message)])
