"""Hears a refused request out, for a while, so that its sender lives to read the answer.

A connection that is closed with bytes unread in it is reset, and many a client that was still
sending then finds a dead socket in place of the answer. So the answer goes out whole, what still
comes is received and dropped, and only then the connection is closed.
"""

import asyncio
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

LINGER_S = 30.0  # in all; who sends on after that is cut off
QUIET_S = 2.0  # without a byte; then nothing of the body lies unread
LINGER_BYTES = 256 * 1024 * 1024  # dropped in pieces of some 64 KiB, as the server reads them


class Heard:
    """What a request receives; knows whether its body has come to an end."""

    __slots__ = ("_receive", "is_over")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_over = False

    async def __call__(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):  # nor has a disconnect
            self.is_over = True
        return message


def leaves_unread(scope: Scope, response: Response, heard: Heard) -> bool:
    """Whether this is a refusal that closes the connection before the body has ended."""
    if response.status_code < 400 or heard.is_over:
        return False
    lines = [*response.raw_headers, *scope["headers"]]
    says_close = any(name == b"connection" and b"close" in text.lower() for name, text in lines)
    return says_close or scope["http_version"] == "1.0"


async def tell_and_hear_out(response: Response, scope: Scope, heard: Heard, send: Send) -> None:
    """Send the answer, then drop what still comes of the body, and only then end the answer."""

    async def hold(message: Message) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not is_last:
            await send(message)
            return
        await send({**message, "more_body": True})
        await _drop(heard)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await response(scope, heard, hold)


async def _drop(heard: Heard) -> None:
    left = LINGER_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while left > 0 and not heard.is_over:
                async with asyncio.timeout(QUIET_S):
                    message = await heard()
                left -= len(message.get("body", b""))
