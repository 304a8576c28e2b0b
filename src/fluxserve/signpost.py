"""Finds a route by the first two segments of its path, instead of trying hundreds in a row.

Routes keep their order among those that share a beginning; what begins with a parameter is tried
last. One request then meets a handful of patterns (`bench/http.py` shows what that saves).
"""

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

FOUND = "fluxserve.route"  # the scope's key for what was found
DEPTH = 2  # segments that tell routes apart


class Signpost(BaseRoute):
    """Stands for all `routes` in one place of a router."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._index: dict[str, list[BaseRoute]] = {}
        self._others: list[BaseRoute] = []
        for route in routes:
            key = _key(route.path) if isinstance(route, Route) else None
            if key is None:
                self._others.append(route)
            else:
                self._index.setdefault(key, []).append(route)

    def candidates(self, path: str) -> Sequence[BaseRoute]:
        """The routes that may match `path`."""
        return [*self._index.get(_beginning(path), ()), *self._others]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        partial: tuple[Match, Scope] = (Match.NONE, {})
        for route in self.candidates(scope["path"]):
            match, child = route.matches(scope)
            if match is Match.FULL:
                return match, {**child, FOUND: route}
            if match is Match.PARTIAL and partial[0] is Match.NONE:
                partial = (match, {**child, FOUND: route})
        return partial

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        route: BaseRoute = scope[FOUND]
        await route.handle(scope, receive, send)


def _key(path: str) -> str | None:
    """The beginning of a route's path; None when a parameter stands in it."""
    beginning = _beginning(path)
    return None if "{" in beginning else beginning


def _beginning(path: str) -> str:
    return "/".join(path.split("/", DEPTH + 1)[: DEPTH + 1])
