"""Which submissions are due, handed to one worker at a time, and when to look again.

Where several processes share a store, what is due is claimed by a write. A process that is alone
needs none: it remembers what it has in hand, and for how long.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from fluxserve.core.attempts import Attempt
from fluxserve.core.errors import Conflict, NotFound
from fluxserve.engines.upstream.base import Desk

log = logging.getLogger(__name__)

WORK_MAX = 64  # polls, look-ups and downloads under way at once
SHORTEST_S = 0.005
TAKEN_S = 0.1  # others have in hand what is due, or hold its rows locked: no haste
LOOK_S = 1.0  # rows that became due elsewhere are seen this late
ALONE_LOOK_S = 5.0  # there is no elsewhere: what becomes due is heard of


class DueRows:
    """Works off rows whose time has come, each as one task."""

    def __init__(
        self, desk: Desk, work: Callable[[Attempt], Awaitable[bool]], *, is_alone: bool
    ) -> None:
        """`work` returns whether it moved the row, so that it may be looked at again."""
        self._desk = desk
        self._work = work
        self._is_alone = is_alone
        self._look_s = ALONE_LOOK_S if is_alone else LOOK_S
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: dict[str, datetime] = {}  # ids in hand of one alone, and when they were due

    async def run(self) -> None:
        """Work off what becomes due, for ever."""
        while True:
            self._desk.due.clear()
            try:
                pause_s = await self._start_due()
            except Exception:
                log.exception("looking for due submissions failed; trying again")
                pause_s = self._look_s
            if pause_s > 0:
                await self._sleep(pause_s)

    async def stop(self) -> None:
        """Cut off what is under way: its rows are found again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sleep(self, pause_s: float) -> None:
        self._desk.wakes_at = self._desk.clock() + timedelta(seconds=pause_s)
        # Not wait_for: on Python 3.11 it forgets a cancel that meets a wake-up.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._desk.due.wait()
        self._desk.wakes_at = None

    async def _start_due(self) -> float:
        """Start work on what is due; returns seconds until there may be more."""
        room = WORK_MAX - len(self._tasks)
        if room <= 0:
            return self._look_s  # a task that ends sets `due`
        # A read: it costs less than a claim that finds nothing.
        most = len(self._held) + room if self._is_alone else 1
        rows = await self._desk.attempts.upcoming(most)
        at = self._desk.clock()
        fresh = [row for row in rows if row[1] <= at and self._held.get(row[0]) != row[1]]
        if fresh:
            if self._is_alone:
                await self._take(fresh[:room])
                return 0.0
            return 0.0 if await self._claim(at, room) else TAKEN_S
        first = next((due_at for _, due_at in rows if due_at > at), None)
        if first is None:
            return self._look_s
        return min(self._look_s, max(SHORTEST_S, (first - at).total_seconds()))

    async def _claim(self, at: datetime, room: int) -> int:
        """Returns how many were to be had."""
        until = at + timedelta(seconds=self._desk.lease_s)
        claimed = await self._desk.attempts.claim_due(at, until, room)
        for attempt in claimed:
            self._start(attempt)
        return len(claimed)

    async def _take(self, rows: Sequence[tuple[str, datetime]]) -> None:
        for id_, due_at in rows:
            with contextlib.suppress(NotFound):
                attempt = await self._desk.attempts.get(id_)
                self._held[id_] = due_at
                self._start(attempt, due_at)

    def _start(self, attempt: Attempt, due_at: datetime | None = None) -> None:
        turn = self._turn(attempt, due_at)
        task = asyncio.create_task(turn, name=f"follow {attempt.id}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if len(self._tasks) >= WORK_MAX:
            self._desk.due.set()  # something may have waited for this place
        self._tasks.discard(task)

    async def _turn(self, attempt: Attempt, due_at: datetime | None) -> None:
        is_moved = False
        try:
            is_moved = await self._work(attempt)
        except Conflict as conflict:
            log.info("%s: %s", attempt.prediction_id, conflict.message)
            is_moved = True  # by somebody else
        except Exception:
            log.exception("%s: following its submission failed", attempt.prediction_id)
        if due_at is None:
            pass  # claimed: the lease of its row says when it is looked at again
        elif is_moved:
            self._release(attempt.id, due_at)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(self._desk.lease_s, self._retry, attempt.id, due_at)

    def _release(self, id_: str, due_at: datetime) -> None:
        if self._held.get(id_) == due_at:
            del self._held[id_]

    def _retry(self, id_: str, due_at: datetime) -> None:
        self._release(id_, due_at)
        self._desk.due.set()
