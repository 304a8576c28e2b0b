"""Runs an ASGI application as a real server on a free loopback port, in a thread."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send


class Droppable:
    """Lets an application cut the connection: `scope["drop"]()` closes it without an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # uvicorn hands out a bound method of the object that owns the transport.
            cycle = receive.__self__  # type: ignore[attr-defined]
            scope["drop"] = cycle.transport.abort
        await self.app(scope, receive, send)


@contextmanager
def serving(
    app: ASGIApp, *, port: int = 0, lifespan: Literal["on", "off"] = "off"
) -> Iterator[str]:
    """Yield the origin, `http://127.0.0.1:PORT`, while the server runs."""
    config = uvicorn.Config(
        Droppable(app),
        host="127.0.0.1",
        port=port,
        http="httptools",
        lifespan=lifespan,
        log_level="critical",
    )
    listener = config.bind_socket()
    listener.listen()  # who connects before the thread has begun waits, and is not refused
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(run(config, listener, stop),), name="fake-provider"
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)
        loop.close()
        listener.close()


async def run(config: uvicorn.Config, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until `stop`, then at once end what is left: nobody waits for a fake."""
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    await stop.wait()
    server.force_exit = True
    await server.shutdown(sockets=[listener])
    await server.lifespan.shutdown()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
