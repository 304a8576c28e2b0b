"""The ASGI application: every route of every dialect, and answers for paths that nobody has."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from fluxserve.app import House
from fluxserve.core.errors import ErrorCode, Failure
from fluxserve.dialects import DIALECTS
from fluxserve.dialects.base import Dialect, failed
from fluxserve.dialects.delivery import delivery_routes
from fluxserve.ops import health
from fluxserve.playground import landing
from fluxserve.settings import Settings


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
        failure = Failure(code=ErrorCode.NOT_FOUND, message="there is nothing at this path")
        response = failed(failure, dialect.error, dialect.error_headers)
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    return Starlette(
        routes=all_routes(house),
        lifespan=lifespan,
        middleware=_cors(house.settings),
        exception_handlers={404: unanswered, 405: unanswered},
    )


def all_routes(house: House) -> list[BaseRoute]:
    """Every route of every dialect under every mount, and what belongs to none."""
    found: list[BaseRoute] = []
    for dialect in DIALECTS:
        for mount in dialect.mounts:
            found += dialect.routes(house.services, mount)
    found += delivery_routes(house.services)
    found += health.routes([house.is_ready])
    found += house.metrics.routes()
    found += landing.routes()
    return found


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
