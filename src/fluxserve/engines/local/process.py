"""The server's side of an engine process: start it, hear it, replace it when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from fluxserve.core.request import JSON
from fluxserve.engines.local.cost import Coefficients
from fluxserve.engines.local.start import Early, Setup, spawn
from fluxserve.engines.local.wire import (
    Beat,
    Broken,
    Cancel,
    Down,
    Ended,
    Glimpse,
    Made,
    Moved,
    Note,
    Order,
    Ready,
    Refused,
    Up,
    pack,
    receive,
)

log = logging.getLogger(__name__)

BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # before each start after a death, the last for ever
STEADY_S = 60.0  # one that was ready and lived this long starts the back-off anew
# While torch is imported on a busy machine it may be silent longer than afterwards.
START_SILENCE_S = 90.0
CHECK_S = 0.5
STUCK_FACTOR = 5.0  # work may take this many times as long as foreseen
STOP_S = 5.0


class Lost(Exception):
    """The process went away while it worked on the job."""


JobNews = Moved | Glimpse | Made | Note | Ended
Inbox = asyncio.Queue[tuple[JobNews, Sequence[bytes]] | Lost]


class EngineProcess:
    """One device: a process that is always there, as far as that can be had."""

    def __init__(self, setup: Setup, early: Early | None = None) -> None:
        """`early` may have a process for this setup, which then is the first."""
        self.setup = setup
        self._early = early
        self.ready: Ready | None = None
        self.cost: Coefficients | None = None
        self.refusal = ""  # why the model cannot be loaded, for good
        # Why one that was ready before could not be started again; it is tried on.
        self.setback = ""
        self.deaths = 0
        self.failed_starts = 0  # in a row: deaths before it was ready
        self._jobs: dict[str, Inbox] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._silent_s = self._busy_s = self._expected_s = 0.0
        self._was_ready = False
        self._changed = asyncio.Condition()
        self._keeper: asyncio.Task[None] | None = None

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to start; `wait_ready` tells when it can work."""
        await asyncio.to_thread(_empty, self.setup.spool)
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.setup.device}")

    async def stop(self) -> None:
        """End the process; jobs that it has are lost."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def jobs(self) -> int:
        return len(self._jobs)

    @property
    def facts(self) -> JSON:
        """What this device is and does, for those who watch."""
        ready = self.ready
        return {
            "device": self.setup.device if ready is None else ready.device,
            "name": "" if ready is None else ready.device_name,
            "model": "" if ready is None else ready.name,
            "dtype": self.setup.dtype if ready is None else ready.dtype,
            "state": "refused" if self.refusal else "starting" if ready is None else "ready",
            "running": self.jobs,
            "restarts": self.deaths,
            "busy_s": self._busy_s,
        }

    async def wait_ready(self) -> None:
        """Until it can work, or has been refused for good: then `refusal` says why."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.ready is not None or bool(self.refusal))

    async def _keep(self) -> None:
        tries = 0
        while not self.refusal:
            await asyncio.sleep(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])
            began = time.monotonic()
            try:
                await self._live()
            except OSError:
                log.exception("the engine process could not be started")
            finally:
                was_ready = self.ready is not None
                self.failed_starts = 0 if was_ready else self.failed_starts + 1
                await self._end()
                await self._forget_all()
            is_steady = was_ready and time.monotonic() - began > STEADY_S
            tries = 1 if is_steady else tries + 1
            if not self.refusal:
                self.deaths += 1
                log.warning("the engine process on %s ended; starting it anew", self.setup.device)

    async def _live(self) -> None:
        """Start a process and listen to it until it dies or has to be killed."""
        early = self._early.take(self.setup) if self._early else None
        # Not in a thread: who stops us meanwhile would not know of the process; it is quick.
        spawned = early or spawn(self.setup)
        self._process = spawned.process
        reader, self._writer = await asyncio.open_unix_connection(
            sock=spawned.connection, limit=2**20
        )
        self._silent_s = self._busy_s = self._expected_s = 0.0
        watch = asyncio.create_task(self._watch(self._process))
        try:
            while True:
                message, blobs = await receive(reader)
                await self._take(message, blobs)
        except Broken:
            pass
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process that is silent, or that has been at one piece of work for too long.

        Silence is counted in looks and not by the clock: while this process itself is held up (the
        machine or the container is paused) nothing can be heard.
        """
        while True:
            await asyncio.sleep(CHECK_S)
            self._silent_s += CHECK_S
            silence_s = START_SILENCE_S if self.ready is None else self.setup.silence_s
            busy_s = max(self.setup.stuck_s, STUCK_FACTOR * self._expected_s)
            if self._silent_s > silence_s or self._busy_s > busy_s:
                log.error(
                    "the engine process hangs (silent %.0f s, busy %.0f s); it is replaced",
                    self._silent_s,
                    self._busy_s,
                )
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                return

    async def _end(self) -> None:
        """Close the socket, which ends the process; kill it if it does not listen."""
        writer, process = self._writer, self._process
        self._writer = self._process = None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if process is not None and process.poll() is None:
            try:
                await asyncio.to_thread(process.wait, STOP_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.to_thread(process.wait)

    async def _forget_all(self) -> None:
        async with self._changed:
            self.ready = None
            self._changed.notify_all()
        for inbox in self._jobs.values():
            inbox.put_nowait(Lost())
        self._jobs.clear()

    # --- what it says -----------------------------------------------------------------------------

    async def _take(self, message: Down | Up, blobs: Sequence[bytes]) -> None:
        self._silent_s = 0.0
        match message:
            case Beat(busy_s=busy_s, cost=cost, expected_s=expected_s):
                self._busy_s, self._expected_s = busy_s, expected_s
                self.cost = Coefficients(*cost) if any(cost) else None
            case Ready():
                self._was_ready, self.setback = True, ""
                async with self._changed:
                    self.ready = message
                    self._changed.notify_all()
                log.info(
                    "%s is ready on %s in %.1f s", message.name, message.device, message.load_s
                )
            case Refused(message=reason) if self._was_ready:
                # It could be loaded once: memory is short now, or the device is not back yet.
                self.setback = reason
                log.error("the engine cannot be started again yet: %s", reason)
            case Refused(message=reason):
                async with self._changed:
                    self.refusal = reason
                    self._changed.notify_all()
                log.error("the engine cannot start: %s", reason)
            case Moved() | Glimpse() | Made() | Note() | Ended():
                inbox = self._jobs.get(message.id)
                if inbox is not None:
                    inbox.put_nowait((message, blobs))
                elif isinstance(message, Made):
                    self._throw_away(message.key)
            case _:
                log.error("the engine said %s, which is not for us", type(message).__name__)

    # --- jobs -------------------------------------------------------------------------------------

    async def submit(self, order: Order, blobs: Sequence[bytes]) -> Inbox:
        """Hand over a job; news of it come through the inbox. Lost when the process is away.

        A cancel meanwhile takes the job back, like `drop`.
        """
        inbox: Inbox = asyncio.Queue()
        self._jobs[order.id] = inbox
        try:
            await self._say(order, blobs)
        except Lost:
            self.forget(order.id)
            raise
        except asyncio.CancelledError:
            await self.drop(order.id, inbox)  # what is written of it will arrive
            raise
        return inbox

    async def drop(self, job_id: str, inbox: Inbox) -> None:
        """Cancel a job and wait until nothing of it runs; at most until the process is gone."""
        try:
            with contextlib.suppress(Lost):
                await self._say(Cancel(id=job_id), ())
            while True:
                news = await inbox.get()
                if isinstance(news, Lost):
                    return
                match news[0]:
                    case Made(key=key):
                        self._throw_away(key)
                    case Ended():
                        return
        finally:
            self.forget(job_id)

    def _throw_away(self, key: str) -> None:
        """A finished picture that nobody waits for."""
        (self.setup.spool / key).unlink(missing_ok=True)

    def forget(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    async def _say(self, message: Down, blobs: Sequence[bytes]) -> None:
        if self._writer is None:
            raise Lost
        try:
            self._writer.write(pack(message, blobs))
            await self._writer.drain()
        except OSError as error:
            raise Lost from error


def _empty(spool: Path) -> None:
    """Make the folder, without what an earlier server may have left in it."""
    spool.mkdir(parents=True, exist_ok=True)
    for path in spool.iterdir():
        path.unlink(missing_ok=True)
