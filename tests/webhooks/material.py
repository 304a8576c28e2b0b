"""Predictions with a webhook, a receiver that obeys, a clock that is told the time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fluxserve.core.deliveries import Delivery
from fluxserve.core.ids import new_id
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import ImageRequest, Origin, Task, WebhookSpec

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SECRET = "whsec_Zmx1eC1nYXRld2F5LWNvbnRyYWN0LXNlY3JldC0wMDE="
NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class Clock:
    """Says what it was told."""

    def __init__(self, at: datetime = NOON) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def a_prediction(webhook: WebhookSpec | None = None) -> Prediction:
    request = ImageRequest(
        model="tiny",
        task=Task.TEXT_TO_IMAGE,
        prompt="a fox",
        width=64,
        height=64,
        num_steps=4,
        guidance=2.5,
        seed=7,
    )
    origin = Origin(dialect="replicate", webhook=webhook)
    return Prediction(id=new_id(), request=request, origin=origin, engine="fake", created_at=NOON)


def a_delivery(prediction_id: str = "0" * 32, url: str = "https://app.example/hook") -> Delivery:
    return Delivery(
        id=new_id(),
        prediction_id=prediction_id,
        kind="completed",
        url=url,
        created_at=NOON,
        next_at=NOON,
    )


def again(delivery: Delivery, seconds: float) -> Delivery:
    return replace(delivery, next_at=delivery.next_at + timedelta(seconds=seconds))


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A receiver of webhooks. `status` is what it answers; 0: it never answers."""

    host: str
    port: int = 0
    status: int = 200
    more_headers: str = ""
    inbox: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)
    open_now: int = 0
    open_max: int = 0

    def url(self, path: str = "/hook") -> str:
        return f"http://{self.host}:{self.port}{path}"

    async def next(self) -> Received:
        return await asyncio.wait_for(self.inbox.get(), 10)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_now += 1
        self.open_max = max(self.open_max, self.open_now)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.inbox.put_nowait(Received(first.split()[1], headers, body))
            if self.status == 0:
                await reader.read()  # until the other side gives up
                return
            answer = f"HTTP/1.1 {self.status} X\r\n{self.more_headers}connection: close\r\n"
            writer.write(f"{answer}content-length: 2\r\n\r\nok".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_now -= 1
            writer.close()


@asynccontextmanager
async def receiving(host: str = "127.0.0.1", status: int = 200) -> AsyncIterator[Receiver]:
    receiver = Receiver(host, status=status)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await receiver.talk(reader, writer)
        except asyncio.CancelledError:
            writer.close()
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(connected, host, 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop turn until something is so, ten seconds at the most."""
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)
