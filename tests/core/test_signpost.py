"""The signpost finds what trying every route in order would find."""

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route

from fluxserve.signpost import Signpost

PATHS = (
    "/",
    "/healthz",
    "/v1/predictions",
    "/v1/predictions/{id}",
    "/v1/predictions/{id}/cancel",
    "/v1/models/{owner}/{name}/predictions",
    "/v1/flux-pro",
    "/api/v3/{model:path}",
    "/{anything}/at/all",
)


async def endpoint(request: Request) -> Response:
    return PlainTextResponse("")


ROUTES = [Route(path, endpoint, methods=["GET"]) for path in PATHS]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/healthz",
        "/v1/predictions",
        "/v1/predictions/x",
        "/v1/predictions/x/cancel",
        "/v1/models/a/b/predictions",
        "/v1/flux-pro",
        "/api/v3/wavespeed-ai/flux-dev/multi",
        "/some/at/all",
        "/v1",
        "/v1/",
        "/nothing/here",
        "//",
    ],
)
def test_the_same_route_is_found_as_in_order(path: str, method: str) -> None:
    scope = {"type": "http", "path": path, "method": method, "headers": [], "root_path": ""}
    in_order = next(
        (match for route in ROUTES if (match := route.matches(scope)[0]) is not Match.NONE),
        Match.NONE,
    )
    match, child = Signpost(ROUTES).matches(scope)
    assert match is in_order
    if match is not Match.NONE:
        assert child["path_params"] is not None
