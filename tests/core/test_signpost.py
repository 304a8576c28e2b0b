"""The signpost finds what trying every route in order would find."""

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route

from fluxserve.signpost import Signpost

ROUTES_AT = (
    ("/", "GET"),
    ("/healthz", "GET"),
    ("/v1/predictions", "GET"),
    ("/v1/predictions", "POST"),
    ("/v1/predictions/{id}", "GET"),
    ("/v1/predictions/{id}/cancel", "POST"),
    ("/v1/models/{owner}/{name}/predictions", "POST"),
    ("/v1/flux-pro", "POST"),
    ("/v1/{rest}", "DELETE"),
    ("/api/v3/{model:path}", "POST"),
    ("/{anything}/at/all", "GET"),
    ("/count/{number:int}", "GET"),
    ("/out/{token}/{name}", "GET"),
)
PATHS = (
    "/",
    "/healthz",
    "/v1/predictions",
    "/v1/predictions/",
    "/v1/predictions/x",
    "/v1/predictions/x/cancel",
    "/v1/predictions/x/cancel/more",
    "/v1/models/a/b/predictions",
    "/v1/flux-pro",
    "/api/v3/wavespeed-ai/flux-dev/multi",
    "/api/v3/a" + "/b" * 20,
    "/api/v3/",
    "/api/v3",
    "/some/at/all",
    "/count/12",
    "/count/many",
    "/v1",
    "/v1/",
    "/v1/at/all",
    "/nothing/here",
    "//",
    "//at/all",
    "/out/a-token/fox.png",
    "/out/b-token/fox.png",
)


async def endpoint(request: Request) -> Response:
    return PlainTextResponse("")


ROUTES = [Route(path, endpoint, methods=[method]) for path, method in ROUTES_AT]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("path", PATHS)
def test_the_same_route_is_found_as_in_order(path: str, method: str) -> None:
    scope = {"type": "http", "path": path, "method": method, "headers": [], "root_path": ""}
    matches = [(route, *route.matches(dict(scope))) for route in ROUTES]
    full = [(route, child) for route, match, child in matches if match is Match.FULL]
    there = [route for route, match, _ in matches if match is not Match.NONE]
    signpost = Signpost(ROUTES)
    for _ in range(2):  # what was found once is remembered
        found = signpost.find(path, method)
        assert (found and found.route) is (full[0][0] if full else None)
        if found:
            assert found.params == full[0][1]["path_params"]
    assert signpost.methods(path) == {name for route in there for name in route.methods or ()}


def test_what_is_remembered_of_one_path_holds_for_all_like_it() -> None:
    signpost = Signpost(ROUTES)
    for path in (*PATHS, *PATHS):
        alone = Signpost(ROUTES).find(path, "GET")
        assert signpost.find(path, "GET") == alone


def test_foreign_paths_leave_nothing_behind() -> None:
    signpost = Signpost(ROUTES)
    for number in range(100):
        signpost.find(f"/nobody/{number}" + "/x" * number, "GET")
        signpost.find("/v1/predictions" + "/x" * number, "GET")
        signpost.find(f"/out/{number}/fox.png", "GET")
    assert len(signpost._near) < 20
    assert len(signpost._whole) == 4
