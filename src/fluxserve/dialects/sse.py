"""Server-sent events: framed by sse-starlette, sent by one task a client.

Its own response type runs four tasks for each client, 20 kB more than this one on a stream that
waits (`bench/waiting.py`).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from sse_starlette import ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEP_ALIVE_S = 15.0
_ALIVE = ServerSentEvent(comment="keep-alive", sep="\n").encode()


class EventStream(Response):
    """Sends events as they come; a comment when none comes, so that nobody hangs up on us."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[ServerSentEvent],
        headers: Mapping[str, str],
        keep_alive_s: float,
    ) -> None:
        super().__init__(None, headers=dict(headers))
        del self.headers["content-length"]
        self._events = events
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            while (event := await self._next(send, gone)) is not None:
                body = event.encode().replace(b"\r\n", b"\n")
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            if isinstance(self._events, AsyncGenerator):
                await self._events.aclose()

    async def _next(self, send: Send, gone: "asyncio.Future[None]") -> ServerSentEvent | None:
        """The next event, or None when there is none or nobody to hear it."""
        coming = asyncio.ensure_future(anext(self._events, None))
        both: set[asyncio.Future[Any]] = {coming, gone}
        while True:
            done, _ = await asyncio.wait(
                both, timeout=self._keep_alive_s, return_when=asyncio.FIRST_COMPLETED
            )
            if gone in done:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
                return None
            if done:
                return coming.result()
            await send({"type": "http.response.body", "body": _ALIVE, "more_body": True})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def stream(
    events: AsyncIterator[ServerSentEvent],
    headers: Mapping[str, str] | None = None,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> EventStream:
    """An event stream that is never cached, open to pages of any origin, kept alive by comments."""
    shown = {
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
        "Access-Control-Allow-Origin": "*",
    }
    return EventStream(events, {**shown, **(headers or {})}, keep_alive_s)
