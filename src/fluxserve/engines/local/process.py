"""The server's side of an engine process: start it, hear it, replace it when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxserve.core.request import JSON
from fluxserve.engines.local.cost import Coefficients
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
from fluxserve.flux.skips import FP8

log = logging.getLogger(__name__)

BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # before each start after a death, the last for ever
STEADY_S = 60.0  # a process that lived this long starts the back-off anew
SILENCE_S = 15.0  # without a beat for so long it is taken for frozen ...
START_SILENCE_S = 90.0  # ... but while torch is imported on a busy machine it may be silent longer
CHECK_S = 0.5
STOP_S = 5.0
# Where a driver is, there may be a GPU; Linux, and Linux inside Windows.
NVIDIA = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What an engine process is started with."""

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    fp8: str = "off"  # auto, on, off: copies of the linears in 8 bits beside the exact ones
    threads: int = 0  # 0: one a core
    rows_max: int = 0  # 0: the scheduler's own
    preview_steps: int = 0
    requests_max: int = 16  # jobs that it holds at once
    spool: Path
    stuck_s: float = 120.0  # one piece of work may keep the device for so long
    silence_s: float = SILENCE_S

    @property
    def may_have_fp8(self) -> bool:
        """Whether its device may turn out to have the linears in 8 bits, before it is ready."""
        if self.dtype == FP8 or self.fp8 == "on":
            return True
        is_gpu = self.device.startswith("cuda") or (
            self.device == "auto" and any(path.exists() for path in NVIDIA)
        )
        return self.fp8 == "auto" and is_gpu

    def command(self, fd: int) -> list[str]:
        return [
            sys.executable, "-m", "fluxserve.engines.local.child",
            "--fd", str(fd), "--model", str(self.model), "--device", self.device,
            "--dtype", self.dtype, "--fp8", self.fp8, "--threads", str(self.threads),
            "--spool", str(self.spool), "--rows-max", str(self.rows_max),
            "--preview-steps", str(self.preview_steps), "--requests-max", str(self.requests_max),
        ]  # fmt: skip


class Lost(Exception):
    """The process went away while it worked on the job."""


JobNews = Moved | Glimpse | Made | Note | Ended
Inbox = asyncio.Queue[tuple[JobNews, Sequence[bytes]] | Lost]


class EngineProcess:
    """One device: a process that is always there, as far as that can be had."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.ready: Ready | None = None
        self.cost: Coefficients | None = None
        self.refusal = ""  # why the model cannot be loaded, for good
        self.deaths = 0
        self.failed_starts = 0  # in a row: deaths before it was ready
        self._jobs: dict[str, Inbox] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._heard_at = self._busy_s = 0.0
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
                self.failed_starts = 0 if self.ready is not None else self.failed_starts + 1
                await self._end()
                await self._forget_all()
            tries = 1 if time.monotonic() - began > STEADY_S else tries + 1
            if not self.refusal:
                self.deaths += 1
                log.warning("the engine process on %s ended; starting it anew", self.setup.device)

    async def _live(self) -> None:
        """Start a process and listen to it until it dies or has to be killed."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self.setup.command(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=2**20)
        self._heard_at, self._busy_s = time.monotonic(), 0.0
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

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill a process that is silent, or that has been at one piece of work for too long."""
        while True:
            await asyncio.sleep(CHECK_S)
            silent_s = time.monotonic() - self._heard_at
            limit_s = START_SILENCE_S if self.ready is None else self.setup.silence_s
            if silent_s > limit_s or self._busy_s > self.setup.stuck_s:
                log.error(
                    "the engine process hangs (silent %.0f s, busy %.0f s); it is replaced",
                    silent_s,
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
        if process is not None and process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _forget_all(self) -> None:
        async with self._changed:
            self.ready = None
            self._changed.notify_all()
        for inbox in self._jobs.values():
            inbox.put_nowait(Lost())
        self._jobs.clear()

    # --- what it says -----------------------------------------------------------------------------

    async def _take(self, message: Down | Up, blobs: Sequence[bytes]) -> None:
        self._heard_at = time.monotonic()
        match message:
            case Beat(busy_s=busy_s, cost=cost):
                self._busy_s = busy_s
                self.cost = Coefficients(*cost) if any(cost) else None
            case Ready():
                async with self._changed:
                    self.ready = message
                    self._changed.notify_all()
                log.info(
                    "%s is ready on %s in %.1f s", message.name, message.device, message.load_s
                )
            case Refused(message=reason):
                async with self._changed:
                    self.refusal = reason
                    self._changed.notify_all()
                log.error("the engine cannot start: %s", reason)
            case Moved() | Glimpse() | Made() | Note() | Ended():
                inbox = self._jobs.get(message.id)
                if inbox is not None:
                    inbox.put_nowait((message, blobs))
            case _:
                log.error("the engine said %s, which is not for us", type(message).__name__)

    # --- jobs -------------------------------------------------------------------------------------

    async def submit(self, order: Order, blobs: Sequence[bytes]) -> Inbox:
        """Hand over a job; news of it come through the inbox. Lost when the process is away."""
        inbox: Inbox = asyncio.Queue()
        self._jobs[order.id] = inbox
        try:
            await self._say(order, blobs)
        except Lost:
            self.forget(order.id)
            raise
        return inbox

    async def cancel(self, job_id: str) -> None:
        with contextlib.suppress(Lost):
            await self._say(Cancel(id=job_id), ())

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
