"""Prices as rows: written once, never changed, read at every acceptance."""

import logging

from sqlalchemy import bindparam, insert, literal_column, or_, select

from fluxserve.core.errors import FluxserveError
from fluxserve.core.money import Price, Rule
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Row, Rows, Statement, Transition

log = logging.getLogger(__name__)

R = tables.price.c

PRICE_COLUMNS = (R.id, R.model, R.channel, R.rule, R.valid_from)
PRICES_FOR = Statement(
    select(*PRICE_COLUMNS).where(
        or_(R.model == bindparam("of_model"), R.model == literal_column("'*'")),
        or_(R.channel == bindparam("at_channel"), R.channel == literal_column("'*'")),
    ),
    remembers="price",
)
PRICE = Statement(select(*PRICE_COLUMNS).where(R.id == bindparam("price")))
PRICES = Statement(select(*PRICE_COLUMNS).order_by(R.valid_from.desc(), R.id))
ADD_PRICE = Statement(insert(tables.price))


def add_price(price: Price) -> Transition[None]:
    rule = price.rule
    yield ADD_PRICE(
        {
            "id": price.id,
            "model": price.model,
            "channel": price.channel,
            "rule": codec.dump(
                {
                    "per_image": rule.per_image,
                    "per_megapixel": rule.per_megapixel,
                    "per_step": rule.per_step,
                    "options": dict(rule.options),
                }
            ),
            "valid_from": codec.to_micros(price.valid_from),
        }
    )


def readable(rows: Rows) -> list[Price]:
    """The prices in `rows`. One that cannot be read is told of once and does not count."""
    found: list[Price] = []
    for row in rows:
        try:
            found.append(_price(row))
        except (ValueError, TypeError, AttributeError, FluxserveError) as error:
            if row[0] not in _unreadable:
                _unreadable.add(row[0])
                log.error("the price %s cannot be read, so it is left out: %s", row[0], error)
    return found


_unreadable: set[str] = set()


def _price(row: Row) -> Price:
    id_, model, channel, rule, valid_from = row
    return Price(
        id=id_,
        model=model,
        channel=channel,
        rule=Rule(**codec.load(rule)),
        valid_from=codec.to_time(valid_from),
    )
