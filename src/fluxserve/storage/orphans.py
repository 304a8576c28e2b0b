"""Blobs that no row refers to: left by a crash between file and row, or by purged predictions.

Three things protect what is still on its way to a row: its age; for inputs the day in their name,
after which nobody writes them again; for outputs the prediction they are made for, while it lives.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import bindparam, exists, select, text

from fluxserve.core.blobkeys import GRACE, maker_of, may_go
from fluxserve.storage import tables
from fluxserve.storage.blobs import Blobs
from fluxserve.storage.database import Database, Statement, Transition
from fluxserve.storage.transitions import IS_USED

_P = tables.prediction.c
IS_ALIVE = Statement(
    select(exists().where(_P.id == bindparam("maker"), text("finished_at IS NULL")))
)


class Orphans:
    """Finds and deletes them. Lists the whole store, so once a day is often enough."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        *,
        clock: Callable[[], datetime],
        grace: timedelta = GRACE,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._grace = grace

    async def sweep(self) -> int:
        """Delete what was written longer than the grace ago and is not used; returns how many."""
        removed = 0
        at = self._clock()
        async for keys in self._blobs.written_before(at - self._grace):
            old = [key for key in keys if may_go(key, at)]
            for key in await self._database.scan(_unused(old)):
                await self._blobs.delete(key)
                removed += 1
        return removed


def _unused(keys: Sequence[str]) -> Transition[Sequence[str]]:
    unused: list[str] = []
    for key in keys:
        if (yield IS_USED({"key": key}))[0][0]:
            continue
        maker = maker_of(key)
        if maker is not None:
            if (yield IS_ALIVE({"maker": maker}))[0][0]:
                continue
            if (yield IS_USED({"key": key}))[0][0]:
                continue  # it ended between the two looks
        unused.append(key)
    return unused
