"""What waits in the database, of all servers on it, counted when somebody asks."""

from sqlalchemy import func, select, text

from fluxserve.core.ports import Waiting
from fluxserve.storage import tables
from fluxserve.storage.database import Database, Statement, Transition

P = tables.prediction.c
QUEUED = Statement(
    select(P.engine, func.count()).where(text("status = 'queued'")).group_by(P.engine)
)
WEBHOOKS = Statement(
    select(func.count()).select_from(tables.delivery).where(text("state = 'pending'"))
)


class Backlog:
    """Counts by partial indexes, so that it is cheap while the backlog is short."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count(self) -> Waiting:
        return await self._database.scan(_count())


def _count() -> Transition[Waiting]:
    queued = yield QUEUED({})
    webhooks = yield WEBHOOKS({})
    return Waiting(
        queued={str(engine): int(count) for engine, count in queued}, webhooks=int(webhooks[0][0])
    )
