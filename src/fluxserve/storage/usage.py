"""What was spent, summed up from the ledger: by key, model, channel and day (UTC).

The ledger outlives predictions. Of one that is gone its price tells the model and the channel, as
far as that is not a price for all of them, and then its submission does.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, bindparam, func, literal_column, select

from fluxserve.core.money import Usage
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Param, Statement, Transition

L = tables.ledger.c
P = tables.prediction.c
A = tables.attempt.c
R = tables.price.c

DAY_MICROS = 86_400 * 1_000_000

_DAY = L.at - L.at % literal_column(str(DAY_MICROS))
_ALL: ColumnElement[str] = literal_column("'*'")
_NONE: ColumnElement[str] = literal_column("''")
_MODEL = func.coalesce(P.model, func.nullif(R.model, _ALL), A.upstream_model, _NONE)
_CHANNEL = func.coalesce(A.channel, P.engine, func.nullif(R.channel, _ALL), _NONE)
_SPENT = (
    select(
        L.key_id,
        _MODEL,
        _CHANNEL,
        _DAY,
        func.count(L.prediction_id.distinct()),
        func.sum(L.micro),
    )
    .select_from(
        tables.ledger.outerjoin(tables.prediction, P.id == L.prediction_id)
        .outerjoin(tables.attempt, A.id == L.attempt_id)
        .outerjoin(tables.price, R.id == L.price_id)
    )
    .where(
        L.kind.in_([literal_column("'settle'"), literal_column("'adjust'")]),
        L.at >= bindparam("start"),
        L.at < bindparam("end"),
    )
    .group_by(L.key_id, _MODEL, _CHANNEL, _DAY)
    .order_by(_DAY, L.key_id, _MODEL, _CHANNEL)
)
USAGE = Statement(_SPENT)
USAGE_OF_KEY = Statement(_SPENT.where(L.key_id == bindparam("key")))


def usage(key_id: str | None, start: datetime, end: datetime) -> Transition[Sequence[Usage]]:
    """Spending from `start` to `end` (exclusive), of one key or of all."""
    params: dict[str, Param] = {"start": codec.to_micros(start), "end": codec.to_micros(end)}
    if key_id is None:
        rows = yield USAGE(params)
    else:
        rows = yield USAGE_OF_KEY(params | {"key": key_id})
    return [
        Usage(
            key_id=owner,
            model=model,
            channel=channel,
            day=codec.to_time(int(day)).date().isoformat(),
            predictions=int(count),
            micro=int(micro),
        )
        for owner, model, channel, day, count, micro in rows
    ]
