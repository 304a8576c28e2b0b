"""The other servers on one database: what they serve, and whether the clocks agree.

Servers need not be alike: one may have a GPU, another accounts at providers. What waits for an
engine that a server does not have is another's work, and none of its business while that one lives.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from fluxserve.core.errors import Unavailable

log = logging.getLogger(__name__)

BEAT_S = 10.0
SILENT_S = 600.0  # a server that was not heard for so long, a restart included, serves nothing
SKEW_MAX_S = 5.0  # leases are judged by the clock of whoever looks


@dataclass(frozen=True, slots=True)
class Seen:
    """now: by the clock of the database. served: engines and channels of the other servers."""

    now: datetime
    served: frozenset[str]


class Nodes(Protocol):
    async def beat(
        self, own_id: str, serves: frozenset[str], at: datetime, silent: timedelta
    ) -> Seen:
        """Say what this server serves, and hear of those that spoke within `silent`."""
        ...


class Neighbours:
    """Tells the others of this server, and this server of the others."""

    def __init__(
        self,
        nodes: Nodes | None,
        own_id: str,
        serves: frozenset[str],
        clock: Callable[[], datetime],
        *,
        beat_s: float = BEAT_S,
        silent_s: float = SILENT_S,
    ) -> None:
        """nodes: None where no other server can be. own_id: the same after every restart."""
        self._nodes = nodes
        self._serves = serves
        self._clock = clock
        self._beat_s = beat_s
        self._silent = timedelta(seconds=silent_s)
        self._id = own_id
        self._served: frozenset[str] = frozenset()
        self._skew_told = False
        self._task: asyncio.Task[None] | None = None

    def serve(self, engine: str) -> bool:
        """Whether another server that lives has this engine or channel."""
        return engine in self._served

    async def start(self, lost: Callable[[], Awaitable[None]]) -> None:
        """`lost` is awaited whenever something is served nowhere else any more."""
        if self._nodes is not None:
            await self._beat(self._nodes)
            self._task = asyncio.create_task(self._run(self._nodes, lost), name="neighbours")

    async def stop(self) -> None:
        """Without a farewell: a server that is started anew finds its work waiting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, nodes: Nodes, lost: Callable[[], Awaitable[None]]) -> None:
        is_owed = False  # something was lost, and `lost` has not gone through yet
        while True:
            await asyncio.sleep(self._beat_s)
            try:
                before = self._served
                await self._beat(nodes)
                is_owed |= bool(before - self._served - self._serves)
                if is_owed:
                    await lost()
                    is_owed = False
            except Unavailable as error:
                log.warning("the other servers could not be asked: %s", error.message)
            except Exception:
                log.exception("a look at the other servers failed; trying again")

    async def _beat(self, nodes: Nodes) -> None:
        seen = await nodes.beat(self._id, self._serves, self._clock(), self._silent)
        self._served = seen.served
        skew_s = (self._clock() - seen.now).total_seconds()
        if abs(skew_s) > SKEW_MAX_S and not self._skew_told:
            log.warning(
                "the clock of this machine is %.0f s %s the database's: leases and deadlines "
                "need clocks that agree within a few seconds",
                *(abs(skew_s), "ahead of" if skew_s > 0 else "behind"),
            )
        self._skew_told = abs(skew_s) > SKEW_MAX_S
