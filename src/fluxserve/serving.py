"""Runs the application under uvicorn: the socket, the ready line, the way down."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import uvicorn

from fluxserve.app import House
from fluxserve.asgi import create_app
from fluxserve.core.errors import ErrorCode, FluxserveError, StartupError
from fluxserve.core.request import JSON
from fluxserve.dialects import native
from fluxserve.engines.local.start import Early
from fluxserve.settings import Settings

GRACE_S = 30  # open answers are given this long to end
NOTE = "server.json"  # where a running server writes its address
TICK_S = 1.0  # the date in the headers of answers has seconds


class _Server(uvicorn.Server):
    """Says when it is ready, and sends waiting clients home before it waits for them."""

    def __init__(self, config: uvicorn.Config, house: House, url: str) -> None:
        super().__init__(config)
        self._house = house
        self._url = url
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_over = asyncio.Event()

    async def main_loop(self) -> None:
        # Not uvicorn's own, which wakes an idle server ten times a second.
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._is_over.wait()

    def end(self) -> None:
        """Answer what is open, then stop; from any thread."""
        self._house.close()
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._is_over.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._url and sys.stdout:  # None when it was closed beforehand
            with contextlib.suppress(OSError):  # whoever read it has gone, or its disk is full
                sys.stdout.write(f"fluxserve ready on {self._url}\n")
                sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own way, which raises the signal once more and so never ends with 0.
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.end()


def serve(settings: Settings, early: Early | None = None) -> int:
    """Serve until told to stop; returns the exit code. StartupError when it cannot start.

    `early` holds engine processes that were started beforehand.
    """
    check_certificate(settings.tls_cert, settings.tls_key)
    listener = _listen(settings)
    house = asyncio.run(House.open(settings, early))
    url = settings.public_url or _url(settings, listener)
    server = _Server(_config(settings, house), house, url)
    note = settings.data / NOTE

    async def main() -> None:
        with _room(settings):
            await house.start()
        try:
            with _room(settings):
                note.write_text(json.dumps(_about(settings, listener)))
            await server.serve(sockets=[listener])
        finally:
            note.unlink(missing_ok=True)
            await house.stop()

    _run(main())
    return 0


@contextlib.contextmanager
def _room(settings: Settings) -> Iterator[None]:
    """StartupError when the disk of the data directory is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StartupError(
            f"{settings.data} has no room left ({error.strerror}): make some, or choose another "
            "directory with --data-dir"
        ) from None


class Background:
    """A server on loopback inside a thread, for a command that needs one for a moment."""

    def __init__(self, settings: Settings, early: Early | None = None) -> None:
        self._listener = _listen(settings)
        self._house = asyncio.run(House.open(settings, early))
        self._server = _Server(_config(settings, self._house), self._house, "")
        self._url = _url(settings, self._listener)
        self._is_ready = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """The thread's work: start the house, serve, stop the house."""

        async def main() -> None:
            await self._house.start()
            try:
                self._is_ready.set()
                await self._server.serve(sockets=[self._listener])
            finally:
                await self._house.stop()

        try:
            _run(main())
        except BaseException as error:
            self._error = error
        finally:
            self._is_ready.set()

    def wait_until_ready(self, timeout_s: float) -> str:
        """The server's URL once it can take work; StartupError."""
        if not self._is_ready.wait(timeout_s):
            raise StartupError(f"the server was not ready after {timeout_s:.0f} s")
        if self._error is not None:
            raise self._error
        return self._url

    def stop(self) -> None:
        self._server.end()


def once(settings: Settings, method: str, path: str, body: Mapping[str, JSON] | None) -> Any:
    """One call of the native API with no server and no engine running; FluxserveError."""

    async def main() -> Any:
        house = await House.open(settings)
        await house.database.start()
        try:
            transport = httpx.ASGITransport(create_app(house))
            token = house.admin_token
            async with httpx.AsyncClient(
                transport=transport,
                base_url="http://localhost",
                headers={"Authorization": f"Bearer {token}"},
            ) as client:
                answer = await client.request(method, native.MOUNT + path, json=body)
        finally:
            await house.guard.aclose()
            await house.database.stop()
        told = answer.json()
        if answer.is_success:
            return told
        error = FluxserveError(told["error"]["message"])
        error.code = ErrorCode(told["error"]["code"])
        raise error

    return asyncio.run(main())


def check_certificate(cert: str, key: str) -> None:
    """StartupError unless https can be served with these files; "" for both: plain http.

    The key may stand in the file of the certificate. One with a pass phrase is of no use: nobody
    is there to type it when a server starts by itself.
    """
    if not cert and not key:
        return
    if not cert:
        raise StartupError("setting tls_cert: needed beside tls_key: the PEM certificate chain")
    for name, path in {"tls_cert": cert, "tls_key": key or cert}.items():
        try:
            Path(path).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no name of a file
            why = getattr(error, "strerror", None) or error
            raise StartupError(f"setting {name}: {path} cannot be read: {why}") from None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key or None, password=lambda: "")
    except (OSError, ValueError) as error:
        why = str(getattr(error, "reason", None) or "no PEM").lower().replace("_", " ")
        files = f"{cert} and {key}" if key else f"{cert} alone"
        wanted = "a PEM certificate and its private key, without a pass phrase"
        raise StartupError(
            f"settings tls_cert, tls_key: {files} cannot be used ({why}): give {wanted}"
        ) from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows has none
        return None
    return uvloop.new_event_loop


def _config(settings: Settings, house: House) -> uvicorn.Config:
    # The house is started by us and not in the lifespan, so that a refusal is one sentence.
    return uvicorn.Config(
        create_app(house),
        log_level="warning",
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
    )


def _url(settings: Settings, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    return f"{'https' if settings.tls_cert else 'http'}://{shown}:{port}"


def _about(settings: Settings, listener: socket.socket) -> dict[str, JSON]:
    """What commands beside this server need to reach it."""
    verify: JSON = str(Path(settings.tls_cert).absolute()) if settings.tls_cert else True
    return {"url": _url(settings, listener), "pid": os.getpid(), "verify": verify}


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise StartupError(
            f"cannot listen on {where} ({error.strerror}): choose another with --port or --host"
        ) from None
    return listener
