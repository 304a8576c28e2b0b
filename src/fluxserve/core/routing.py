"""Which engine serves a card: routes by priority, then price, then weight among those that can."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fluxserve.core.catalog import ModelCard
from fluxserve.core.errors import Unavailable
from fluxserve.core.request import ImageRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`engine` serves the cards that `model` names: an id, an alias, or a pattern with *."""

    model: str
    engine: str
    priority: int = 0  # higher goes first
    weight: float = 1.0  # share among routes of one priority and price

    def fits(self, card: ModelCard) -> bool:
        return any(fnmatchcase(name.lower(), self.model.lower()) for name in card.names)


def no_price(engine: str, request: ImageRequest) -> int | None:
    """Nobody knows what anything costs."""
    return None


class Router:
    """Chooses once, at creation; the choice is written in the row."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        is_able: Callable[[str], bool],
        draw: Callable[[], float],
        price: Callable[[str, ImageRequest], int | None] = no_price,
    ) -> None:
        """`price`: of a request at an engine, in millionths of a USD; None where unknown."""
        self._routes = tuple(routes)
        self._is_able = is_able
        self._draw = draw
        self._price = price
        self._by_card: dict[str, tuple[ModelCard, tuple[Route, ...]]] = {}

    def routes(self, card: ModelCard) -> Sequence[Route]:
        """Every route of this card, best first."""
        known = self._by_card.get(card.id)
        if known is None or known[0] is not card:
            fitting = [route for route in self._routes if route.fits(card)]
            fitting.sort(key=lambda route: (-route.priority, -route.weight))
            known = self._by_card[card.id] = (card, tuple(fitting))
        return known[1]

    def choose(
        self, card: ModelCard, request: ImageRequest | None = None, *, but: Sequence[str] = ()
    ) -> str:
        """The engine for `card`, none of `but`; Unavailable when nothing serves it.

        Among routes of one priority those that are cheapest for `request` go first, if the price
        of every one of them is known.
        """
        fitting = self.routes(card)
        if but:
            fitting = [route for route in fitting if route.engine not in but]
        if not fitting:
            raise Unavailable(
                f"no engine or upstream serves {card.id}: "
                "add a [[route]] or an [[upstream]] that names it",
                field="model",
            )
        able = [route for route in fitting if self._is_able(route.engine)] or fitting
        if len(able) == 1:
            return able[0].engine
        top = [route for route in able if route.priority == able[0].priority]
        first = self._cheapest(top, request)
        mark = self._draw() * sum(route.weight for route in first)
        for route in first:
            mark -= route.weight
            if mark < 0:
                return route.engine
        return first[-1].engine

    def _cheapest(self, routes: Sequence[Route], request: ImageRequest | None) -> Sequence[Route]:
        if request is None or len(routes) == 1:
            return routes
        prices = [self._price(route.engine, request) for route in routes]
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return routes
        least = min(known)
        return [route for route, price in zip(routes, known, strict=True) if price == least]
