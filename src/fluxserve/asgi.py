"""The ASGI application: every route of every dialect, and answers for paths that nobody has."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxserve.app import CALLBACKS, House
from fluxserve.core.errors import ErrorCode, Failure, FluxserveError
from fluxserve.dialects import DIALECTS, native
from fluxserve.dialects.base import Dialect, Handler, answering, base_url, failed, read_object
from fluxserve.dialects.delivery import delivery_routes
from fluxserve.dialects.strangers import strange_host, strange_page
from fluxserve.front import is_loopback
from fluxserve.ops import health
from fluxserve.playground import landing
from fluxserve.settings import Settings
from fluxserve.signpost import Signpost


def create_app(house: House) -> Starlette:
    """The ASGI application of a house; its lifespan starts and stops the house."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await house.start()
        yield
        await house.stop()

    async def unanswered(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        dialect = _owner(request.url.path)
        is_there = error.status_code == 405
        words = f"{request.method} is not for this path" if is_there else "nothing is at this path"
        failure = Failure(code=ErrorCode.NOT_FOUND, message=words)
        response = failed(failure, dialect.error, dialect.error_headers)
        response.status_code = error.status_code
        if is_there:
            response.headers["Allow"] = ", ".join(_methods(routes, request))
        return response

    routes = all_routes(house)
    return Starlette(
        routes=[Signpost(routes)],
        lifespan=lifespan,
        middleware=[*_cors(house.settings), Middleware(Doorkeeper, house=house)],
        exception_handlers={404: unanswered, 405: unanswered},
    )


def _methods(routes: Sequence[BaseRoute], request: Request) -> list[str]:
    """Every method that some route has for this path."""
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


class Doorkeeper:
    """Turns web pages of strangers away while the server asks for no key."""

    def __init__(self, app: ASGIApp, house: House) -> None:
        self._app = app
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and await self._is_open():
            request = Request(scope)
            if why := self._is_strange(request):
                dialect = _owner(request.url.path)
                failure = Failure(code=ErrorCode.FORBIDDEN, message=why)
                await failed(failure, dialect.error, dialect.error_headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _is_open(self) -> bool:
        try:
            return await self._house.keyring.is_open()
        except FluxserveError:
            return True  # the store does not answer: nobody knows of any key

    def _is_strange(self, request: Request) -> str:
        settings, host = self._house.settings, request.headers.get("host", "").lower()
        if is_loopback(settings.host) and strange_host(host, settings.public_url):
            return "this server needs no key, so it answers to local names and public_url only"
        ours = [host, urlsplit(base_url(request, self._house.services.http)).netloc.lower()]
        if strange_page(request.method, request.headers, ours, settings.cors):
            return "pages of other origins may not call a server without keys: see `cors`"
        return ""


def all_routes(house: House) -> list[BaseRoute]:
    """Every route of every dialect under every mount, and what belongs to none."""
    found: list[BaseRoute] = []
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


def _cors(settings: Settings) -> list[Middleware]:
    if not settings.cors:
        return []
    exposed = ("Location", "Preference-Applied", "ratelimit-remaining", "ratelimit-reset")
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST", "PUT", "DELETE", "QUERY"],
            allow_headers=["*"],
            expose_headers=[*exposed, "Retry-After"],
        )
    ]
