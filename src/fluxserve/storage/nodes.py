"""Which servers work on this database, and what each of them serves."""

import json
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, bindparam, cast, delete, extract, func, insert, select, update

from fluxserve.core.neighbours import Seen
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Database, Statement, Transition

N = tables.node.c
FORGOTTEN_AFTER = timedelta(days=1)

TIME = Statement(
    select(bindparam("at")),
    select(cast(extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)),
)
BEAT = Statement(
    update(tables.node)
    .where(N.id == bindparam("own_id"))
    .values(heartbeat_at=bindparam("now"), capacity=bindparam("serves"))
    .returning(N.id)
)
JOIN = Statement(insert(tables.node))
OTHERS = Statement(
    select(N.capacity).where(N.id != bindparam("own_id"), N.heartbeat_at >= bindparam("since"))
)
FORGET = Statement(delete(tables.node).where(N.heartbeat_at < bindparam("before")))


class SqlNodes:
    """`Nodes` on a database that servers share. Times are the database's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def beat(
        self, own_id: str, serves: frozenset[str], at: datetime, silent: timedelta
    ) -> Seen:
        return await self._database.run(_beat(own_id, serves, at, silent))


def _beat(own_id: str, serves: frozenset[str], at: datetime, silent: timedelta) -> Transition[Seen]:
    time = yield TIME({"at": codec.to_micros(at)})
    now = codec.to_time(time[0][0])
    said = json.dumps(sorted(serves))
    known = yield BEAT({"own_id": own_id, "now": codec.to_micros(now), "serves": said})
    if not known:
        yield FORGET({"before": codec.to_micros(now - FORGOTTEN_AFTER)})
        yield JOIN(
            {
                "id": own_id,
                "role": "server",
                "started_at": codec.to_micros(now),
                "heartbeat_at": codec.to_micros(now),
                "capacity": said,
            }
        )
    others = yield OTHERS({"own_id": own_id, "since": codec.to_micros(now - silent)})
    return Seen(now=now, served=frozenset(name for row in others for name in json.loads(row[0])))
