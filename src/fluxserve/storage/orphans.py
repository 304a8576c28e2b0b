"""Blobs that no row refers to: left by a crash between file and row, or by purged predictions."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from fluxserve.storage.blobs import Blobs
from fluxserve.storage.database import Database, Transition
from fluxserve.storage.transitions import IS_USED

GRACE = timedelta(days=1)  # longer than any run lasts: its outputs are blobs before they are rows


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
        async for keys in self._blobs.written_before(self._clock() - self._grace):
            for key in await self._database.scan(_unused(keys)):
                await self._blobs.delete(key)
                removed += 1
        return removed


def _unused(keys: Sequence[str]) -> Transition[Sequence[str]]:
    unused: list[str] = []
    for key in keys:
        rows = yield IS_USED({"key": key})
        if not rows[0][0]:
            unused.append(key)
    return unused
