"""Finds the route of a path by the path's first two segments, instead of trying hundreds in a row.

Routes keep their order among those that may match one path; paths without parameters are looked up
whole. One request then meets a pattern or two (`bench/http.py` shows what that saves).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.convertors import StringConvertor
from starlette.routing import Route

DEPTH = 2  # segments that tell routes apart
LATELY_LENGTH = 200  # characters; longer ones are nobody's polls
LATELY_MAX = 1024  # paths with parameters: clients poll the same few again and again


class Found(NamedTuple):
    """A route, and the values of the parameters in its path."""

    route: Route
    params: Mapping[str, Any]


class Signpost:
    """Knows all `routes`."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)
        # One more than any route without a path parameter has: what is longer is all alike.
        self._segments_max = 2 + max((route.path.count("/") for route in routes), default=0)
        self._lately: dict[tuple[str, str], Found] = {}
        self._beginnings = {
            start
            for route in routes
            for start in _beginnings(route.path.split("/"))
            if "{" not in start
        }
        self._near: dict[tuple[str, int], Sequence[Route]] = {}
        self._whole: dict[str, dict[str, Found]] = {
            route.path: {} for route in routes if "{" not in route.path
        }

    def find(self, path: str, method: str) -> Found | None:
        """The first route that has this method at this path."""
        whole = self._whole.get(path)
        if whole is None:
            return self._lately.get((path, method)) or self._look(path, method)
        found = whole.get(method)
        if found is None and (found := self._search(path, method)):
            whole[method] = found
        return found

    def methods(self, path: str) -> set[str]:
        """Every method that some route has for this path; empty where there is nothing."""
        found: set[str] = set()
        for route in self._candidates(path):
            if route.path_regex.match(path):
                found |= route.methods or set()
        return found

    def _look(self, path: str, method: str) -> Found | None:
        found = self._search(path, method)
        if found is not None:
            if len(self._lately) >= LATELY_MAX:
                self._lately.clear()
            if len(path) <= LATELY_LENGTH:
                self._lately[path, method] = found
        return found

    def _search(self, path: str, method: str) -> Found | None:
        for route in self._candidates(path):
            if route.methods and method in route.methods:
                match = route.path_regex.match(path)
                if match is not None:
                    return Found(route, _converted(route, match.groupdict()))
        return None

    def _candidates(self, path: str) -> Sequence[Route]:
        """The routes that may match `path`, in order."""
        parts = path.split("/")
        # A beginning that no route has fixed tells nothing: there are only so many keys.
        known = (start for start in _beginnings(parts) if start in self._beginnings)
        key = (next(known, ""), min(len(parts), self._segments_max))
        near = self._near.get(key)
        if near is None:
            near = tuple(route for route in self._routes if _may_match(route, parts))
            self._near[key] = near
        return near


def _beginnings(parts: Sequence[str]) -> Iterator[str]:
    """The first segments of a path, the longest beginning that tells routes apart first."""
    for depth in range(min(DEPTH, len(parts) - 1), 0, -1):
        yield "/".join(parts[: depth + 1])


def _may_match(route: Route, parts: Sequence[str]) -> bool:
    """Whether the number of segments, and the fixed ones at the beginning, fit."""
    own = route.path.split("/")
    if _has_plain_parameters(route) and len(own) != len(parts):
        return False
    for ours, theirs in zip(own[: DEPTH + 1], parts, strict=False):
        if "{" in ours:
            return True
        if ours != theirs:
            return False
    return True


def _has_plain_parameters(route: Route) -> bool:
    return all(type(one) is StringConvertor for one in route.param_convertors.values())


def _converted(route: Route, params: dict[str, Any]) -> Mapping[str, Any]:
    for name, convertor in route.param_convertors.items():
        if type(convertor) is not StringConvertor:
            params[name] = convertor.convert(params[name])
    return params
