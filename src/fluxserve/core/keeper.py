"""What must happen by itself: lost work runs again, deadlines end, old data goes."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fluxserve.core.errors import Conflict, ErrorCode, Failure, NotFound
from fluxserve.core.outcomes import Outcomes
from fluxserve.core.ports import BlobStore, FileStore, PredictionStore, Query
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.service import PredictionService

log = logging.getLogger(__name__)

DAY = timedelta(days=1)
TIDY_AFTER = timedelta(minutes=10)  # of a start: a server that is stopped each night tidies too


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Seconds that finished work is kept; 0 keeps it for ever."""

    files_s: float = 7 * 86400.0  # outputs, inputs, uploads
    predictions_s: float = 30 * 86400.0  # the records themselves


class Keeper:
    """Each round is a set of claims, so any number of processes may run one."""

    def __init__(
        self,
        *,
        store: PredictionStore,
        files: FileStore,
        blobs: BlobStore,
        service: PredictionService,
        outcomes: Outcomes,
        clock: Callable[[], datetime],
        retention: Retention,
        attempts_max: int,
        is_running: Callable[[Prediction], bool] = lambda lost: False,
        counts_starts: Callable[[Prediction], bool] = lambda lost: True,
        home: Callable[[Prediction], str | None] = lambda row: row.engine,
        daily: Sequence[Callable[[], Awaitable[object]]] = (),
        recover_s: float = 3.0,
        sweep_s: float = 60.0,
    ) -> None:
        """`is_running`: this start is at work in this process, so its heartbeat is only late.

        `counts_starts`: too many lost runs end the prediction. Not where a run is a submission
        that somebody is paid for: it has limits of its own, and its result can still be had.

        `home`: the engine that serves a prediction: its own, another one when that is no longer
        configured, or None when nobody does.
        """
        self._store = store
        self._files = files
        self._blobs = blobs
        self._service = service
        self._outcomes = outcomes
        self._clock = clock
        self._retention = retention
        self._attempts_max = attempts_max
        self._is_running = is_running
        self._counts_starts = counts_starts
        self._home = home
        self._daily = tuple(daily)
        self._tidied_at = clock() - DAY + TIDY_AFTER
        self._recover_s = recover_s
        self._sweep_s = sweep_s
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.rehome()
        rounds = ((self.recover, self._recover_s), (self.sweep, self._sweep_s))
        self._tasks = [asyncio.create_task(self._every(work, pause)) for work, pause in rounds]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def recover(self) -> None:
        """Requeue what lost its worker; end what is past its deadline."""
        at = self._clock()
        for lost in await self._store.expired(at):
            if self._is_running(lost):
                continue  # the whole process slept: the next heartbeat takes the lease again
            try:
                if lost.attempt >= self._attempts_max and self._counts_starts(lost):
                    text = f"the run was lost {lost.attempt} times and is given up"
                    failure = Failure(code=ErrorCode.ENGINE_FAILED, message=text)
                    await self._outcomes.fail(lost, failure)
                else:
                    log.warning("%s lost its worker", lost.id)
                    await self._house(lost)
            except (Conflict, NotFound):
                continue
        for late in await self._store.overdue(at):
            with contextlib.suppress(Conflict, NotFound):
                await self._service.expire(late)

    async def rehome(self) -> None:
        """What waits for an engine that is no longer configured goes to another one, or ends."""
        cursor: tuple[datetime, str] | None = None
        queued = (PredictionStatus.QUEUED,)
        while rows := await self._store.page(Query(statuses=queued, cursor=cursor)):
            cursor = (rows[-1].created_at, rows[-1].id)
            for row in rows:
                if self._home(row) != row.engine:
                    with contextlib.suppress(Conflict, NotFound):
                        await self._house(row)

    async def _house(self, row: Prediction) -> None:
        """Into the queue of the engine that serves it; nobody would ever claim what has none."""
        home = self._home(row)
        if home is None:
            text = f"{row.engine}, which was to serve it, is no longer configured"
            failure = Failure(code=ErrorCode.UNAVAILABLE, message=text)
            await self._outcomes.fail(row, failure)
        else:
            if home != row.engine:
                log.warning("%s goes from %s to %s", row.id, row.engine, home)
            await self._outcomes.requeue(row, home)

    async def sweep(self) -> None:
        """Remove what is older than its retention."""
        at = self._clock()
        if self._retention.files_s:
            before = at - timedelta(seconds=self._retention.files_s)
            while stripped := await self._store.strip(before):
                for blob in stripped:
                    await self._blobs.delete(blob.key)
        while old := await self._files.expired(at):
            for file in old:
                with contextlib.suppress(NotFound):  # its owner or another server was faster
                    orphan = await self._files.delete(file.id)
                    if orphan is not None:
                        await self._blobs.delete(orphan.key)
        if self._retention.predictions_s:
            before = at - timedelta(seconds=self._retention.predictions_s)
            while await self._store.purge(before):
                pass
        if at - self._tidied_at >= DAY:
            self._tidied_at = at
            for tidy in self._daily:
                await tidy()

    async def _every(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except Exception:
                log.exception("a round of the keeper failed; trying again")
            await asyncio.sleep(pause_s)
