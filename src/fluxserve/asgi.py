"""The ASGI application: every route of every dialect, and answers for paths that nobody has.

    server ─> [CORS, where pages may call] ─> doorkeeper ─> signpost ─> handler ─> answer

What every request passes is written out here; Starlette gives the tables, the requests and the
answers, and runs start and stop.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxserve.app import CALLBACKS, House
from fluxserve.core.errors import ErrorCode, Failure, FluxserveError
from fluxserve.dialects import DIALECTS, native
from fluxserve.dialects.base import Dialect, Handler, answering, base_url, failed, read_object
from fluxserve.dialects.delivery import delivery_routes
from fluxserve.dialects.strangers import SAFE, strange_host, strange_page
from fluxserve.dialects.wire import Asked
from fluxserve.front import is_loopback
from fluxserve.ops import health
from fluxserve.playground import landing
from fluxserve.settings import Settings
from fluxserve.signpost import Signpost
from fluxserve.unread import Heard, leaves_unread, tell_and_hear_out

# Links that are permission enough, for pages of any origin: outputs, and the uploads of fal.
SIGNED_PATH = re.compile(r"/out/|(/[^/]+)?/storage/put/")


def create_app(house: House) -> Starlette:
    """The ASGI application of a house; its lifespan starts and stops the house."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await house.start()
        yield
        await house.stop()

    front = Front(house, all_routes(house))
    return _Application(_with_cors(front, house.settings), lifespan=lifespan)


class _Application(Starlette):
    """Hands requests straight to the front; the rest of the protocol is Starlette's."""

    def __init__(self, front: ASGIApp, **options: Any) -> None:
        super().__init__(**options)
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._front(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Front:
    """Finds who answers a request, and answers what nobody does."""

    def __init__(self, house: House, routes: Sequence[Route]) -> None:
        self._doorkeeper = Doorkeeper(house)
        self._http = house.services.http
        self._signpost = Signpost(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        heard = Heard(receive)
        request = Asked(scope, heard, send)
        response = await self._answer(request, scope)
        if leaves_unread(scope, response, heard):
            await tell_and_hear_out(response, scope, heard, send)
        else:
            await response(scope, receive, send)

    async def _answer(self, request: Request, scope: Scope) -> Response:
        if why := await self._doorkeeper.refusal(request):
            return _failed(scope["path"], Failure(code=ErrorCode.FORBIDDEN, message=why))
        found = self._signpost.find(scope["path"], scope["method"])
        if found is None:
            return self._unanswered(request)
        scope["path_params"] = found.params
        response: Response = await found.route.endpoint(request)
        return response

    def _unanswered(self, request: Request) -> Response:
        path, method = request.scope["path"], request.scope["method"]
        if methods := self._signpost.methods(path):
            words = f"{method} is not for this path"
            response = _failed(path, Failure(code=ErrorCode.WRONG_METHOD, message=words))
            response.status_code = 405
            response.headers["Allow"] = ", ".join(sorted(methods))
            return response
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        if path != "/" and self._signpost.methods(other):
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(f"{base_url(request, self._http)}{quote(other)}{query}")
        failure = Failure(code=ErrorCode.NOT_FOUND, message="nothing is at this path")
        response = _failed(path, failure)
        response.status_code = 404
        return response


class Doorkeeper:
    """Turns web pages of strangers away while the server asks for no key."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._is_near = is_loopback(house.settings.host)

    async def refusal(self, request: Request) -> str:
        """Why this request is turned away; empty when it is welcome."""
        if not await self._is_open():
            return ""
        settings, headers = self._house.settings, request.headers
        host = headers.get("host", "").lower()
        if self._is_near and strange_host(host, settings.public_url):
            return "this server needs no key, so it answers to local names and public_url only"
        method = request.scope["method"]
        if method in SAFE:
            return ""
        ours = [host]
        if headers.get("origin") is not None:
            ours.append(urlsplit(base_url(request, self._house.services.http)).netloc.lower())
        if strange_page(method, headers, ours, settings.cors):
            return "pages of other origins may not call a server without keys: see `cors`"
        return ""

    async def _is_open(self) -> bool:
        try:
            return await self._house.keyring.is_open()
        except FluxserveError:
            return True  # the store does not answer: nobody knows of any key


def all_routes(house: House) -> list[Route]:
    """Every route of every dialect under every mount, and what belongs to none."""
    found: list[Route] = []
    for dialect in DIALECTS:
        for mount in dialect.mounts:
            found += dialect.routes(house.services, mount)
    found += delivery_routes(house.services)
    found.append(Route(CALLBACKS + "{token}", _heard(house), methods=["POST"]))
    found += health.routes([house.is_ready])
    found += house.metrics.routes()
    found += landing.routes()
    return found


def _heard(house: House) -> Handler:
    """A provider tells of a submission: the token in the path is the permission."""

    async def heard(request: Request) -> Response:
        body = await read_object(request, house.settings.limits.body_max_bytes)
        await house.upstreams.heard(request.path_params["token"], body)
        return JSONResponse({"status": "ok"})

    return answering(native.DIALECT.error)(heard)


def _owner(path: str) -> Dialect:
    for dialect in DIALECTS:
        if dialect.owns(path):
            return dialect
    return DIALECTS[0]


def _failed(path: str, failure: Failure) -> Response:
    dialect = _owner(path)
    return failed(failure, dialect.error, dialect.error_headers)


def _with_cors(front: ASGIApp, settings: Settings) -> ASGIApp:
    if not settings.cors:
        return front
    exposed = ("Location", "Preference-Applied", "ratelimit-remaining", "ratelimit-reset")
    guarded = CORSMiddleware(
        front,
        allow_origins=list(settings.cors),
        allow_methods=["GET", "POST", "PUT", "DELETE", "QUERY"],
        allow_headers=["*"],
        expose_headers=[*exposed, "Retry-After"],
    )

    async def by_path(scope: Scope, receive: Receive, send: Send) -> None:
        """Signed links are for pages of any origin, and answer for themselves."""
        is_signed = scope["type"] == "http" and SIGNED_PATH.match(scope["path"])
        await (front if is_signed else guarded)(scope, receive, send)

    return by_path
