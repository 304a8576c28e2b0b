"""Event streams as one client sees them: framing, keep-alive, hanging up."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from sse_starlette import ServerSentEvent

from fluxserve.dialects.sse import stream

SCOPE = {"type": "http", "method": "GET"}


class Caller:
    """An ASGI client that collects what is sent and hangs up when told."""

    def __init__(self) -> None:
        self.sent = b""
        self.headers: dict[bytes, bytes] = {}
        self.is_over = False
        self.hangs_up = asyncio.Event()
        self.got = asyncio.Event()

    async def receive(self) -> MutableMapping[str, Any]:
        await self.hangs_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.headers = dict(message["headers"])
            return
        self.sent += message["body"]
        self.is_over = not message.get("more_body")
        self.got.set()


async def two() -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(data="one\ntwo", event="output", id="1")
    yield ServerSentEvent(data="{}", event="done", id="2")


async def test_events_are_framed_line_by_line_and_the_stream_ends() -> None:
    caller = Caller()
    await stream(two())(SCOPE, caller.receive, caller.send)
    assert caller.headers[b"content-type"].startswith(b"text/event-stream")
    assert caller.headers[b"cache-control"] == b"no-store"
    assert b"content-length" not in caller.headers
    assert caller.sent == (
        b"id: 1\nevent: output\ndata: one\ndata: two\n\nid: 2\nevent: done\ndata: {}\n\n"
    )
    assert caller.is_over


async def test_a_stream_that_waits_is_kept_alive_by_comments() -> None:
    async def never() -> AsyncIterator[ServerSentEvent]:
        await asyncio.Event().wait()
        yield ServerSentEvent(data="")

    caller = Caller()
    answer = stream(never(), keep_alive_s=0.01)
    running = asyncio.create_task(answer(SCOPE, caller.receive, caller.send))
    await asyncio.wait_for(caller.got.wait(), 5)
    assert caller.sent.startswith(b": keep-alive\n\n")
    caller.hangs_up.set()
    await asyncio.wait_for(running, 5)


async def test_hanging_up_closes_the_source() -> None:
    is_closed = asyncio.Event()

    async def held() -> AsyncIterator[ServerSentEvent]:
        try:
            yield ServerSentEvent(data="first")
            await asyncio.Event().wait()
        finally:
            is_closed.set()

    caller = Caller()
    running = asyncio.create_task(stream(held())(SCOPE, caller.receive, caller.send))
    await asyncio.wait_for(caller.got.wait(), 5)
    caller.hangs_up.set()
    await asyncio.wait_for(running, 5)
    assert is_closed.is_set()
