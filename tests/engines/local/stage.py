"""Engine processes that a test plays itself: what they say and hear is up to the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.start import Early, Setup, Spawned
from fluxserve.engines.local.wire import Down, Ready, Up, pack, receive
from fluxserve.flux.folder import embedded_folder

READY = Ready(name="played", device="cuda:0", dtype="bfloat16", load_s=1.0)


class Actor:
    """One process: alive until it is killed or leaves."""

    pid = 1

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.was_killed = False

    async def aclose(self) -> None:
        """Put its end of the socket away; it may have left before."""
        _, writer = await self._open()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        return self._reader, self._writer

    async def say(self, message: Up) -> None:
        _, writer = await self._open()
        writer.write(pack(message))
        await writer.drain()

    async def hear(self) -> Down | Up:
        reader, _ = await self._open()
        message, _ = await receive(reader)
        return message

    # --- what the server does with a process ------------------------------------------------------

    def kill(self) -> None:
        self.was_killed = True
        with contextlib.suppress(OSError):  # it may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def poll(self) -> int:
        return 0

    def wait(self, timeout: float | None = None) -> int:
        return 0


class Stage(Early):
    """Where each start of a process is an actor's entrance."""

    def __init__(self) -> None:
        super().__init__(())
        self.entrances: asyncio.Queue[Actor] = asyncio.Queue()
        self._cast: list[Actor] = []

    def take(self, setup: Setup) -> Spawned:
        ours, theirs = socket.socketpair()
        actor = Actor(theirs)
        self.entrances.put_nowait(actor)
        self._cast.append(actor)
        return Spawned(actor, ours)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        for actor in self._cast:
            await actor.aclose()


@contextlib.asynccontextmanager
async def played(spool: Path, **changes: float) -> AsyncGenerator[tuple[LocalEngine, Stage], None]:
    """An engine whose processes are actors, for ten seconds at most."""
    stage = Stage()
    setup = Setup(model=embedded_folder(), spool=spool, **changes)  # type: ignore[arg-type]
    engine = LocalEngine("played", [setup], early=stage)
    async with asyncio.timeout(10):
        await engine.start()
        try:
            yield engine, stage
        finally:
            await engine.stop()
            await stage.aclose()
