"""Money in SQL: a hold is written with the acceptance, and closed with the move that ends the work.

    accept + hold (budget: one conditional UPDATE) ── move / attempt move + settle or release
The ledger only grows. Books of a prediction are closed once it has ended and none of its
submissions can still be charged for.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import bindparam, insert, literal_column, or_, select, update

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import BudgetExhausted, NotFound
from fluxserve.core.events import Event
from fluxserve.core.ids import new_id
from fluxserve.core.money import (
    Budget,
    Entry,
    EntryKind,
    Price,
    Usage,
    best_price,
    period_of,
)
from fluxserve.core.ports import Idempotency
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import ImageRequest
from fluxserve.storage import attempts as submissions
from fluxserve.storage import codec, tables, transitions
from fluxserve.storage.accept import ONE_BY_ONE, accept
from fluxserve.storage.database import Database, Param, Statement, Transition
from fluxserve.storage.predictions import SqlPredictionStore
from fluxserve.storage.prices import PRICE, PRICES, PRICES_FOR, add_price, readable
from fluxserve.storage.usage import usage as summed

L = tables.ledger.c
B = tables.budget.c
K = tables.api_key.c

CLOSING = (EntryKind.SETTLE, EntryKind.RELEASE)
CHARGED = (AttemptState.DONE, AttemptState.FETCHED, AttemptState.FAILED, AttemptState.CANCELED)

LIMITS = Statement(select(K.limits).where(K.id == bindparam("key")))
OPEN_MONTH = transitions.insert_or_ignore(tables.budget, "owner", "period")
RESERVE = Statement(
    update(tables.budget)
    .where(
        B.owner == bindparam("of_owner"),
        B.period == bindparam("in_period"),
        or_(
            bindparam("no_limit") == literal_column("1"),
            B.spent_micro + B.held_micro + bindparam("more") <= bindparam("limit_now"),
        ),
    )
    .values(held_micro=B.held_micro + bindparam("more"), limit_micro=bindparam("limit_now"))
    .returning(B.owner)
)
SPEND = Statement(
    update(tables.budget)
    .where(B.owner == bindparam("of_owner"), B.period == bindparam("in_period"))
    .values(
        held_micro=B.held_micro - bindparam("freed"),
        spent_micro=B.spent_micro + bindparam("used"),
    )
    .returning(B.owner)
)
MONTH = Statement(
    select(B.limit_micro, B.held_micro, B.spent_micro).where(
        B.owner == bindparam("of_owner"), B.period == bindparam("in_period")
    )
)
WRITE = Statement(insert(tables.ledger))
ENTRIES = Statement(
    select(L.id, L.kind, L.key_id, L.prediction_id, L.attempt_id, L.micro, L.price_id, L.at)
    .where(L.prediction_id == bindparam("of_prediction"))
    .order_by(L.id)
)


class BudgetedPredictionStore(SqlPredictionStore):
    """The prediction store with money: acceptance holds, the end settles, in one transaction."""

    async def add(
        self,
        prediction: Prediction,
        event: Event,
        deliveries: Sequence[Delivery] = (),
        idempotency: Idempotency | None = None,
        queue_max: int = 0,
        concurrency_max: int = 0,
    ) -> Prediction:
        """As before; BudgetExhausted when the key cannot pay for it."""
        transition = accept(
            prediction, event, deliveries, idempotency, self._queue, queue_max, concurrency_max
        )
        return await self._accept(prediction, _held(prediction, transition))

    async def move(
        self,
        before: Prediction,
        after: Prediction,
        event: Event,
        deliveries: Sequence[Delivery] = (),
    ) -> Event:
        if not after.is_terminal:
            return await super().move(before, after, event, deliveries)
        return await self._database.run(
            _settled(after, event.at, transitions.move(before, after, event, deliveries))
        )

    def _before_delete(self, prediction_id: str) -> Transition[None]:
        yield from part_with(prediction_id)
        yield from super()._before_delete(prediction_id)


class BudgetedAttemptStore(submissions.AttemptRows):
    """The attempt store with money: the last submission to end closes the books."""

    def _close(self, prediction_id: str, at: datetime) -> Transition[None]:
        yield from close_books(prediction_id, at)


class SqlMoneyStore:
    """`MoneyStore` on either database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_price(self, price: Price) -> None:
        await self._database.run(add_price(price))

    async def prices(self) -> Sequence[Price]:
        return await self._database.read(_prices())

    async def budget(self, key_id: str, at: datetime) -> Budget | None:
        return await self._database.read(_month(key_id, period_of(at)))

    async def entries(self, prediction_id: str) -> Sequence[Entry]:
        return await self._database.read(entries(prediction_id))

    async def usage(self, *, key_id: str | None, start: datetime, end: datetime) -> Sequence[Usage]:
        return await self._database.read(summed(key_id, start, end))


def hold(prediction: Prediction) -> Transition[None]:
    """Set aside what a prediction may cost; BudgetExhausted."""
    rows = yield PRICES_FOR({"of_model": prediction.request.model, "at_channel": prediction.engine})
    price = best_price(readable(rows), prediction.created_at) if rows else None
    owner, period = prediction.origin.key_id or "", period_of(prediction.created_at)
    limit = (yield from _limit(owner)) if owner else 0
    if price is None:
        yield from _check_spent(owner, period, limit)
        return
    micro = price.rule.cost(prediction.request, prediction.request.num_outputs)
    yield OPEN_MONTH(_new_month(owner, period, limit))
    reserved = yield RESERVE(
        {
            "of_owner": owner,
            "in_period": period,
            "more": micro,
            "limit_now": limit,
            "no_limit": int(limit == 0),
        }
    )
    if not reserved:
        text = f"the budget of this key for {period} does not cover {micro / 1e6:.4f} USD more"
        raise BudgetExhausted(text)
    yield from _write(
        EntryKind.HOLD, owner, prediction.id, micro, prediction.created_at, price_id=price.id
    )


def _check_spent(owner: str, period: str, limit: int) -> Transition[None]:
    """Nobody knows the price of what is asked for: refused once bills have used up the budget."""
    month = (yield from _month(owner, period)) if limit else None
    if month is not None and month.held_micro + month.spent_micro >= limit:
        raise BudgetExhausted(f"the budget of this key for {period} is used up")


def _held(prediction: Prediction, accepting: Transition[Prediction]) -> Transition[Prediction]:
    stored = yield from accepting
    if stored.id == prediction.id:
        yield from hold(prediction)
    return stored


def _settled(after: Prediction, at: datetime, moving: Transition[Event]) -> Transition[Event]:
    stored = yield from moving
    yield from close_books(after.id, at)
    return stored


def close_books(prediction_id: str, at: datetime) -> Transition[None]:
    """Settle or release what was held, once the work is over and cannot be charged any more.

    Of a prediction that was deleted meanwhile the hold tells whose it is, and its price. Of two
    that end its last two parts at once each would see the other's open, and neither would close.
    """
    yield ONE_BY_ONE({"key": f"books {prediction_id}"})
    written = yield from entries(prediction_id)
    made = yield from submissions.of(prediction_id)
    if not written and not any(attempt.cost_micro for attempt in made):
        return
    held = _hold_in(written)
    prediction: Prediction | None = None
    with contextlib.suppress(NotFound):
        prediction = yield from transitions.get(prediction_id)
    if prediction is not None:
        is_over, owner = prediction.is_terminal, prediction.origin.key_id or ""
    elif held is not None:
        is_over, owner = True, held.key_id
    else:
        return  # deleted when nobody could charge for it any more
    if not is_over or any(attempt.state.is_open for attempt in made):
        return
    due = yield from _due(prediction, made, held)
    paid_for = next((a.id for a in reversed(made) if a.state in CHARGED), None)
    price_id = held.price_id if held else None
    if any(entry.kind in CLOSING for entry in written):
        booked = sum(e.micro for e in written if e.kind in (EntryKind.SETTLE, EntryKind.ADJUST))
        if due > booked:
            more = due - booked
            yield from _spend(owner, period_of(at), freed=0, used=more)
            yield from _write(EntryKind.ADJUST, owner, prediction_id, more, at, price_id, paid_for)
        return
    month = period_of(held.at if held else at)
    yield from _spend(owner, month, freed=held.micro if held else 0, used=due)
    kind = EntryKind.SETTLE if due else EntryKind.RELEASE
    yield from _write(kind, owner, prediction_id, due, at, price_id, paid_for)


def part_with(prediction_id: str) -> Transition[None]:
    """Before a prediction is deleted: keep whose it is, if a provider may still charge for it."""
    made = yield from submissions.of(prediction_id)
    if not any(attempt.state.is_open for attempt in made):
        return
    if _hold_in((yield from entries(prediction_id))) is None:
        gone = yield from transitions.get(prediction_id)
        yield from _write(
            EntryKind.HOLD, gone.origin.key_id or "", prediction_id, 0, gone.created_at
        )


def _hold_in(written: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in written if entry.kind is EntryKind.HOLD), None)


def _due(
    prediction: Prediction | None, made: Sequence[Attempt], held: Entry | None
) -> Transition[int]:
    """What the work cost: our price for pictures delivered, else what the provider charged.

    Where it did the work and names no sum, its share of what was held.
    """
    if prediction is not None and prediction.status is PredictionStatus.SUCCEEDED and held:
        rows = yield PRICE({"price": held.price_id})
        if found := readable(rows):
            return found[0].rule.cost(_as_made(prediction), len(prediction.outputs))
    due = 0
    for attempt in made:
        if attempt.cost_micro and attempt.state in CHARGED:
            due += attempt.cost_micro
        elif attempt.state is AttemptState.DONE and held is not None:
            due += round(held.micro / attempt.parts)
    return due


def _as_made(prediction: Prediction) -> ImageRequest:
    """The request, with the size that came of an input picture where it said none."""
    request, outputs = prediction.request, prediction.outputs
    if request.width * request.height or not outputs:
        return request
    return replace(request, width=outputs[0].blob.width, height=outputs[0].blob.height)


def entries(prediction_id: str) -> Transition[Sequence[Entry]]:
    rows = yield ENTRIES({"of_prediction": prediction_id})
    found = [
        Entry(
            id=row[0],
            kind=EntryKind(row[1]),
            key_id=row[2],
            prediction_id=row[3],
            attempt_id=row[4],
            micro=row[5],
            price_id=row[6],
            at=codec.to_time(row[7]),
        )
        for row in rows
    ]
    return sorted(found, key=lambda entry: (entry.at, entry.kind is not EntryKind.HOLD))


def _limit(owner: str) -> Transition[int]:
    """The monthly budget of a key; 0: none."""
    rows = yield LIMITS({"key": owner})
    return int(codec.load(rows[0][0]).get("budget_micro", 0)) if rows else 0


def _spend(owner: str, period: str, *, freed: int, used: int) -> Transition[None]:
    yield OPEN_MONTH(_new_month(owner, period, 0))
    yield SPEND({"of_owner": owner, "in_period": period, "freed": freed, "used": used})


def _new_month(owner: str, period: str, limit: int) -> Mapping[str, Param]:
    fresh = {"held_micro": 0, "spent_micro": 0}
    return {"owner": owner, "period": period, "limit_micro": limit, **fresh}


def _write(
    kind: EntryKind,
    owner: str,
    prediction_id: str,
    micro: int,
    at: datetime,
    price_id: str | None = None,
    attempt_id: str | None = None,
) -> Transition[None]:
    yield WRITE(
        {
            "id": new_id(),
            "key_id": owner,
            "prediction_id": prediction_id,
            "attempt_id": attempt_id,
            "kind": kind.value,
            "micro": micro,
            "price_id": price_id,
            "at": codec.to_micros(at),
        }
    )


def _prices() -> Transition[Sequence[Price]]:
    rows = yield PRICES({})
    return readable(rows)


def _month(owner: str, period: str) -> Transition[Budget | None]:
    rows = yield MONTH({"of_owner": owner, "in_period": period})
    if not rows:
        return None
    return Budget(limit_micro=rows[0][0], held_micro=rows[0][1], spent_micro=rows[0][2])
