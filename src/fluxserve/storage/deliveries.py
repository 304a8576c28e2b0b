"""The outbox of webhook messages in SQL: `DeliveryStore` over a `Database`."""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from sqlalchemy import bindparam, func, select, text, update

from fluxserve.core.deliveries import Delivery, DeliveryState
from fluxserve.core.errors import NotFound
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Database, Param, Statement, Transition
from fluxserve.storage.records import DELIVERY_COLUMNS, decode_delivery

D = tables.delivery.c

IS_PENDING = text("state = 'pending'")

DUE = (
    select(D.id)
    .where(IS_PENDING, D.next_at <= bindparam("at"))
    .order_by(D.next_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
CLAIM = Statement(
    update(tables.delivery)
    .where(D.id.in_(DUE), IS_PENDING)
    .values(next_at=bindparam("until"))
    .returning(*DELIVERY_COLUMNS)
)
SETTLE = Statement(
    update(tables.delivery)
    .where(
        D.id == bindparam("delivery_id"),
        D.state == bindparam("held_state"),
        D.next_at == bindparam("held_until"),
        D.tries == bindparam("held_tries"),
    )
    .values(
        next_at=bindparam("again_at"),
        tries=bindparam("tried"),
        state=bindparam("new_state"),
        last_status=bindparam("answered"),
        last_error=bindparam("trouble"),
    )
    .returning(D.id)
)
GET = Statement(select(*DELIVERY_COLUMNS).where(D.id == bindparam("delivery_id")))
NEXT_DUE = Statement(select(func.min(D.next_at)).where(IS_PENDING))


class SqlDeliveryStore:
    """`DeliveryStore` on either database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim_due(
        self, at: datetime, lease_until: datetime, limit: int
    ) -> Sequence[Delivery]:
        first = await self.next_due()  # a look is much cheaper than a write that finds nothing
        if first is None or first > at:
            return []
        return await self._database.run(_claim(at, lease_until, limit))

    async def settle(self, held: Delivery, after: Delivery) -> bool:
        return await self._database.run(_settle(held, after))

    async def get(self, delivery_id: str) -> Delivery:
        return await self._database.read(_get(delivery_id))

    async def page(
        self,
        *,
        state: DeliveryState | None = None,
        prediction_id: str | None = None,
        limit: int = 100,
    ) -> Sequence[Delivery]:
        """Newest first."""
        return await self._database.scan(_page(state, prediction_id, limit))

    async def next_due(self) -> datetime | None:
        return await self._database.read(_next_due())


def _claim(at: datetime, lease_until: datetime, limit: int) -> Transition[Sequence[Delivery]]:
    rows = yield CLAIM(
        {"at": codec.to_micros(at), "until": codec.to_micros(lease_until), "most": limit}
    )
    claimed = [decode_delivery(row) for row in rows]
    return sorted(claimed, key=lambda delivery: (delivery.created_at, delivery.id))


def _settle(held: Delivery, after: Delivery) -> Transition[bool]:
    rows = yield SETTLE(
        {
            "delivery_id": held.id,
            "held_state": held.state.value,
            "held_until": codec.to_micros(held.next_at),
            "held_tries": held.tries,
            "again_at": codec.to_micros(after.next_at),
            "tried": after.tries,
            "new_state": after.state.value,
            "answered": after.last_status,
            "trouble": codec.encode_words(after.last_error),
        }
    )
    return bool(rows)


def _get(delivery_id: str) -> Transition[Delivery]:
    rows = yield GET({"delivery_id": delivery_id})
    if not rows:
        raise NotFound("no such delivery")
    return decode_delivery(rows[0])


def _page(
    state: DeliveryState | None, prediction_id: str | None, limit: int
) -> Transition[Sequence[Delivery]]:
    params: dict[str, Param] = {"most": limit}
    if state is not None:
        params["in_state"] = state.value
    if prediction_id is not None:
        params["of"] = prediction_id
    rows = yield _page_statement(state is not None, prediction_id is not None)(params)
    return [decode_delivery(row) for row in rows]


@lru_cache(maxsize=4)
def _page_statement(by_state: bool, by_prediction: bool) -> Statement:
    chosen = select(*DELIVERY_COLUMNS)
    if by_state:
        chosen = chosen.where(D.state == bindparam("in_state"))
    if by_prediction:
        chosen = chosen.where(D.prediction_id == bindparam("of"))
    return Statement(chosen.order_by(D.created_at.desc(), D.id.desc()).limit(bindparam("most")))


def _next_due() -> Transition[datetime | None]:
    rows = yield NEXT_DUE({})
    return codec.maybe_time(rows[0][0])
