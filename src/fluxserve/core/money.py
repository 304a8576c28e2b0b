"""Money: what work costs, what keys may spend, what was spent. Amounts are millionths of a USD.

accepted: hold ─> ended well: settle · ended otherwise: release, or settle what was charged
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from math import ceil
from typing import Protocol

from fluxserve.core.access import Caller
from fluxserve.core.errors import InvalidRequest
from fluxserve.core.request import ImageRequest

log = logging.getLogger(__name__)

REFRESH_S = 5.0  # prices set by another process are seen this late
PIXELS_UNKNOWN = 1024 * 1024  # held for a picture whose size follows from an input yet to come


class EntryKind(StrEnum):
    HOLD = "hold"  # set aside at acceptance
    SETTLE = "settle"  # really spent; closes the hold
    RELEASE = "release"  # nothing was spent; closes the hold
    ADJUST = "adjust"  # a bill that came after the books of the prediction were closed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a price comes about, each part for one picture."""

    per_image: int = 0
    per_megapixel: int = 0  # of 1,000,000 px
    per_step: int = 0
    options: Mapping[str, int] = field(default_factory=dict)  # field of a request, when it is set

    def __post_init__(self) -> None:
        if min(self.per_image, self.per_megapixel, self.per_step) < 0:
            raise InvalidRequest("prices cannot be negative", field="per_image")
        known = ImageRequest.__dataclass_fields__
        for name in self.options:
            if name not in known:
                raise InvalidRequest(f"no request has a field {name!r}", field="options")

    def cost(self, request: ImageRequest, pictures: int) -> int:
        """The price of `pictures` pictures of this request, rounded up."""
        pixels = request.width * request.height or PIXELS_UNKNOWN
        one = self.per_image + self.per_megapixel * pixels / 1_000_000
        one += self.per_step * request.num_steps
        one += sum(micro for name, micro in self.options.items() if getattr(request, name))
        return max(0, ceil(round(one * pictures, 6)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A rule for a model at an engine or channel from a moment on; never changed afterwards."""

    id: str
    model: str  # a card id, or * for all
    channel: str  # an engine or upstream, or * for all
    rule: Rule
    valid_from: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger."""

    id: str
    kind: EntryKind
    key_id: str  # "" when nobody's key
    prediction_id: str
    attempt_id: str | None
    micro: int
    price_id: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one key spent on one model at one channel on one day (UTC)."""

    key_id: str
    model: str
    channel: str
    day: str  # 2026-11-21
    predictions: int
    micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One key's month."""

    limit_micro: int  # 0: no limit
    held_micro: int
    spent_micro: int

    @property
    def left_micro(self) -> int:
        return self.limit_micro - self.held_micro - self.spent_micro


class MoneyStore(Protocol):
    """Prices, budgets and the ledger. Holds are made and closed with the moves they belong to."""

    async def add_price(self, price: Price) -> None: ...

    async def prices(self) -> Sequence[Price]:
        """Every version, newest first."""
        ...

    async def budget(self, key_id: str, at: datetime) -> Budget | None:
        """The month of `at`, or None when nothing was held or spent in it."""
        ...

    async def entries(self, prediction_id: str) -> Sequence[Entry]:
        """The ledger of one prediction, oldest first."""
        ...

    async def usage(self, *, key_id: str | None, start: datetime, end: datetime) -> Sequence[Usage]:
        """Spending from `start` to `end` (exclusive), of one key or of all."""
        ...


class PriceBook:
    """The price table in memory, for questions that cannot wait, such as which route is cheaper."""

    def __init__(self, store: MoneyStore, clock: "Clock") -> None:
        self._store = store
        self._clock = clock
        self._prices: Sequence[Price] = ()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.refresh()
        self._task = asyncio.create_task(self._refresh_forever(), name="read prices")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Read the table again."""
        self._prices = await self._store.prices()

    def cost(self, channel: str, request: ImageRequest) -> int | None:
        """What acceptance would hold for `request` at `channel`; None where there is no price."""
        fitting = [
            price
            for price in self._prices
            if price.model in (request.model, "*") and price.channel in (channel, "*")
        ]
        price = best_price(fitting, self._clock())
        return None if price is None else price.rule.cost(request, request.num_outputs)

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except Exception:
                log.exception("the prices could not be read; trying again")


class Accounts:
    """What callers have left; the balance and credits of the dialects ask here."""

    def __init__(self, store: MoneyStore, clock: "Clock") -> None:
        self._store = store
        self._clock = clock

    async def balance_micro(self, caller: Caller) -> int | None:
        """What is left of this month's budget; None where no budget is set."""
        if caller.key is None or not caller.key.budget_micro:
            return None
        month = await self._store.budget(caller.key.id, self._clock())
        used = month.held_micro + month.spent_micro if month else 0
        return max(0, caller.key.budget_micro - used)


class Clock(Protocol):
    def __call__(self) -> datetime: ...


def period_of(at: datetime) -> str:
    """The budget period of a moment: its month in UTC, "2026-11"."""
    return at.strftime("%Y-%m")


def best_price(prices: Sequence[Price], at: datetime) -> Price | None:
    """The one in force at `at`: a named model before *, then a named channel before *, then new."""
    valid = [price for price in prices if price.valid_from <= at]
    return max(
        valid,
        key=lambda price: (price.model != "*", price.channel != "*", price.valid_from),
        default=None,
    )
