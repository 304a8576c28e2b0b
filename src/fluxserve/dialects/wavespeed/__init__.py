"""The WaveSpeed dialect: an envelope round everything, models as paths, results polled.

POST /api/v3/{model-id}                 submit, e.g. wavespeed-ai/flux-kontext-dev; ?webhook=
GET  /api/v3/predictions/{id}/result    the prediction; the same without /result; ?wait=SECONDS
POST /api/v3/predictions                list
POST /api/v3/predictions/delete         forget
POST /api/v3/predictions/{id}/cancel    ours: WaveSpeed cannot cancel
POST /api/v3/media/upload/binary        upload as a multipart form; also /upload
POST /api/v3/media/uploads              a ticket for one PUT
PUT  /api/v3/media/uploads/put/{token}  the bytes, without a key
GET  /api/v3/balance, account/balance   what is left to spend
GET  /api/v3/models                     every model with its schema
POST /api/v3/model/price, /pricing      nothing costs anything
POST /api/v3/billings/search            empty
GET  /api/v3/webhook/secret             what webhooks are signed with

The same under /api/v2.
"""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fluxserve.core.errors import NotFound
from fluxserve.dialects.base import Dialect, Services, answering
from fluxserve.dialects.wavespeed import forms
from fluxserve.dialects.wavespeed.account import Account
from fluxserve.dialects.wavespeed.errors import error, error_body
from fluxserve.dialects.wavespeed.files import Files
from fluxserve.dialects.wavespeed.predictions import NAME, Predictions
from fluxserve.dialects.wavespeed.words import render
from fluxserve.dialects.wire import Answer

MOUNTS = ("/api/v3", "/api/v2")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

Call = Callable[[Request], Awaitable[Response]]


def routes(services: Services, mount: str) -> Sequence[Route]:
    models = forms.models(services.catalog)
    predictions = Predictions(services=services, mount=mount, models=models)
    account = Account(services=services, mount=mount, models=models)
    files = Files(services=services, mount=mount)

    async def model(request: Request) -> Response:
        name = request.path_params["model"].strip("/")
        path = request.url.path
        if path.endswith("/") and any(route.path_regex.match(path[:-1]) for route in fixed):
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(path[:-1] + query)  # keeps method and body
        if request.method == "POST" and "/" in name:  # every model id has an owner
            return await predictions.submit(request, name)
        if name.lower() in models:
            return _wrong_method(request, ("POST",))
        raise NotFound(f"there is nothing at {path[:200]}")

    fixed = [
        _route(f"{mount}/predictions", POST=predictions.page),
        _route(f"{mount}/predictions/delete", POST=predictions.delete),
        _route(f"{mount}/predictions/{{id}}/result", GET=predictions.result),
        _route(f"{mount}/predictions/{{id}}/cancel", POST=predictions.cancel),
        _route(f"{mount}/predictions/{{id}}", GET=predictions.result),
        _route(f"{mount}/media/upload/binary", POST=files.upload),
        _route(f"{mount}/upload", POST=files.upload),
        _route(f"{mount}/media/uploads", POST=files.ticket),
        _route(f"{mount}/media/uploads/put/{{token}}", PUT=files.put),
        _route(f"{mount}/balance", GET=account.balance),
        _route(f"{mount}/account/balance", GET=account.balance_with_currency),
        _route(f"{mount}/models", GET=account.catalogue),
        _route(f"{mount}/model/price", POST=account.price),
        _route(f"{mount}/model/pricing", POST=account.price),
        _route(f"{mount}/billings/search", POST=account.billings),
        _route(f"{mount}/webhook/secret", GET=account.webhook_secret),
    ]
    rest = Route(f"{mount}/{{model:path}}", answering(error)(model), methods=METHODS)
    return [*fixed, rest]


def _route(path: str, **calls: Call) -> Route:
    """One path for all methods, so that a wrong one is answered in the envelope too."""
    if "GET" in calls:
        calls["HEAD"] = calls["GET"]

    async def answer(request: Request) -> Response:
        call = calls.get(request.method)
        return _wrong_method(request, tuple(calls)) if call is None else await call(request)

    return Route(path, answering(error)(answer), methods=METHODS)


def _wrong_method(request: Request, allowed: Sequence[str]) -> Response:
    text = f"{request.method} is not possible here: use {' or '.join(allowed)}"
    body = error_body(405, text, "method_not_allowed")
    return Answer(body, 405, {"Allow": ", ".join(allowed)})


def owns(path: str) -> bool:
    return any(path == mount or path.startswith(f"{mount}/") for mount in MOUNTS)


DIALECT = Dialect(
    name=NAME,
    mounts=MOUNTS,
    routes=routes,
    render=render,
    error=error,
    owns=owns,
    signature="wavespeed",
)
