"""What surrounds every handler of this dialect: methods, key, rate and problem answers."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.access import Caller, RateState
from fluxserve.core.errors import RateLimited, Unauthenticated
from fluxserve.core.request import JSON
from fluxserve.dialects.base import Services, answering, bearer, raised
from fluxserve.dialects.replicate.words import (
    BAD_TOKEN,
    NO_TOKEN,
    PROBLEM_TYPE,
    create_headers,
    error,
    error_headers,
    problem,
    retry_s,
)
from fluxserve.dialects.wire import Answer

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "TRACE")
CREATE, READ = "create", "read"
NO_STORE = {"Cache-Control": "no-store"}

Called: TypeAlias = Callable[[Request, Caller], Awaitable[Response]]
Plain: TypeAlias = Callable[[Request], Awaitable[Response]]


class Compact(Answer):
    """JSON that must always be fresh: a cached poll looks like a run that never ends."""

    def __init__(
        self, content: JSON, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, {**NO_STORE, **(headers or {})})


def answer(body: JSON, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Compact(body, status, headers)


def called(services: Services, handler: Called, kind: str = READ) -> Plain:
    """A handler for a caller with a key: checked, counted, errors in Replicate's shape."""
    headers = create_headers if kind == CREATE else error_headers

    async def run(request: Request) -> Response:
        state: RateState | None = None
        try:
            caller = await find_caller(services, request)
            state = await services.limiter.hit(caller, kind)
            response = await handler(request, caller)
        except Exception as problem_:
            response = raised(request, problem_, error, headers)
            if state is None and isinstance(problem_, RateLimited):
                wait_s = retry_s(problem_.failure())
                state = RateState(limit=0, remaining=0, reset_s=wait_s)
        if state is not None:
            response.raw_headers += _rate(max(0, state.remaining), max(1, state.reset_s))
        return response

    return run


def plain(handler: Plain) -> Plain:
    """A handler that anybody may call."""
    return answering(error, error_headers)(handler)


async def find_caller(services: Services, request: Request) -> Caller:
    """By `Authorization: Bearer` or `Token`; Unauthenticated in the service's words."""
    try:
        return await services.keyring.caller(bearer(request, "bearer", "token"))
    except Unauthenticated as problem_:
        was_given = problem_.was_given
        words = BAD_TOKEN if was_given else NO_TOKEN
        raise Unauthenticated(words, was_given=was_given) from None


def resource(path: str, handlers: Mapping[str, Plain]) -> Route:
    """One route for every method of a path, so that a wrong one is answered in our shape."""
    allowed = ", ".join(sorted({*handlers, "HEAD"} if "GET" in handlers else handlers))

    async def dispatch(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        handler = handlers.get(method)
        if handler is not None:
            return await handler(request)
        text = f'Method "{request.method}" not allowed.'
        headers = {"Allow": allowed, "Content-Type": PROBLEM_TYPE}
        return answer(problem(405, text), 405, headers)

    return Route(path, dispatch, methods=list(METHODS))


def page(
    results: Sequence[JSON], next_url: str | None = None, previous_url: str | None = None
) -> dict[str, JSON]:
    """A page of a list; all three keys are always there."""
    return {"previous": previous_url, "next": next_url, "results": list(results)}


@lru_cache(maxsize=1024)
def _rate(remaining: int, reset_s: int) -> list[tuple[bytes, bytes]]:
    return [
        (b"ratelimit-remaining", b"%d" % remaining),
        (b"ratelimit-reset", b"%d" % reset_s),
    ]
