"""Pictures to test with, and a raw server that can misbehave."""

import asyncio
import io
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from PIL import Image

from fluxserve.core.errors import FluxserveError
from fluxserve.images.guard import GuardedClient

RED, GREEN, BLUE, GREY = (220, 20, 20), (20, 200, 20), (20, 20, 220), (128, 128, 128)


LOOPBACK = ("127.0.0.1/32",)  # opened in tests
PRIVATE = "127.0.0.2"  # stays closed
Answers = list[tuple[int, int, int, str, tuple[str, int]]]  # of a name server
FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def quadrants(width: int = 48, height: int = 32) -> Image.Image:
    """Red top left, green top right, blue bottom left, grey bottom right."""
    image = Image.new("RGB", (width, height), RED)
    half_width, half_height = width // 2, height // 2
    image.paste(GREEN, (half_width, 0, width, half_height))
    image.paste(BLUE, (0, half_height, half_width, height))
    image.paste(GREY, (half_width, half_height, width, height))
    return image


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + mark + struct.pack(order + "HIH", 42, 8, 1) + entry + b"\0\0\0\0"


@dataclass
class RawServer:
    """A loopback server that answers what its handler writes, byte for byte."""

    host: str
    port: int
    requests: list[bytes] = field(default_factory=list)  # heads, as they came
    connections: int = 0

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}:{self.port}{path}"


@asynccontextmanager
async def serving(
    answer: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[RawServer]:
    """`answer(head, writer)` is called once a request; the connection is closed after it."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        site.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            site.requests.append(head)
            await answer(head, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, host, 0)
    site = RawServer(host=host, port=server.sockets[0].getsockname()[1])
    try:
        yield site
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reply(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """A whole HTTP answer; `content_length="7"` and the like replace or add headers."""
    fields = {"content-length": str(len(body)), "connection": "close"}
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def forever(writer: asyncio.StreamWriter, chunk: bytes, pause_s: float = 0.0) -> None:
    """Write `chunk` again and again until the other side has gone."""
    while True:
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(pause_s)


async def refusal(guard: GuardedClient, url: str) -> str:
    """The message with which `guard` refuses to fetch `url`."""
    with pytest.raises(FluxserveError) as caught:
        await guard.get(url)
    return caught.value.message


class MovingName:
    """A name server whose answer changes from one look-up to the next."""

    def __init__(self, port: int, *sequence: tuple[str, ...]) -> None:
        self.port = port
        self.sequence = list(sequence)
        self.lookups = 0

    def __call__(self, host: str, port: int, *rest: object) -> Answers:
        addresses = self.sequence[min(self.lookups, len(self.sequence) - 1)]
        self.lookups += 1
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses
        ]
