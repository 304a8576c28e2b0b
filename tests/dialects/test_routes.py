"""The routes of all dialects side by side: none twice, none in the shadow of another."""

from collections import Counter
from pathlib import Path

from starlette.routing import Match, Route

from fluxserve.app import House
from fluxserve.asgi import all_routes
from fluxserve.settings import load


def routes_of(tmp_path: Path) -> list[Route]:
    flags = {"data_dir": str(tmp_path), "simulator": {"enabled": True}}
    return [one for one in all_routes(House(load(flags, environ={}))) if isinstance(one, Route)]


def test_no_method_of_a_path_is_claimed_twice(tmp_path: Path) -> None:
    claims = Counter(
        (method, route.path) for route in routes_of(tmp_path) for method in route.methods or ()
    )
    assert [claim for claim, count in claims.items() if count > 1] == []


def test_every_route_is_reached_by_some_path(tmp_path: Path) -> None:
    """A path made from the route itself leads to it and not to an earlier one."""
    routes = routes_of(tmp_path)
    shadowed = []
    for position, route in enumerate(routes):
        path = route.path
        for name in route.param_convertors:
            word = f"word-{name}"
            path = path.replace(f"{{{name}:path}}", word).replace(f"{{{name}}}", word)
        for method in sorted(route.methods or ()):
            scope = {"type": "http", "method": method, "path": path, "root_path": ""}
            for earlier in routes[:position]:
                if earlier.matches({**scope})[0] is Match.FULL:
                    shadowed.append((method, route.path, earlier.path))
                    break
    assert shadowed == []
