"""How the guarded client ends what does not end by itself: redirects, drips, bombs, silence."""

import asyncio
import gzip
import threading
import zlib

import pytest

from fluxserve.core.errors import TooLarge
from fluxserve.images.guard import GuardedClient, Limits
from tests.images.material import LOOPBACK, PRIVATE, Answers, forever, refusal, reply, serving


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 T", "308 P"])
async def test_a_redirect_to_a_private_address_is_refused(
    guard: GuardedClient, status: str
) -> None:
    async def secret(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"secret"))

    async with serving(secret, PRIVATE) as private:

        async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(reply(b"", status, location=private.url("/admin?token=1")))

        async with serving(answer) as site:
            message = await refusal(guard, site.url())
        assert message.startswith("127.0.0.2 is not a public address")
        assert "token" not in message
        assert private.connections == 0


async def test_redirects_are_followed_up_to_a_limit(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        left = int(head.split()[1][1:])
        if left:
            writer.write(reply(b"", "302 Found", location=f"/{left - 1}"))
        else:
            writer.write(reply(b"there"))

    async with serving(answer) as site:
        assert await guard.get(site.url("/5")) == b"there"
        assert await refusal(guard, site.url("/6")) == "127.0.0.1 redirects more than 5 times"


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("file:///etc/passwd", "only http and https URLs are fetched"),
        ("http://user:pw@127.0.0.1/", "a URL with a user name or password is not fetched"),
        ("http://[::1", "127.0.0.1 broke the connection off"),
    ],
)
async def test_a_redirect_to_nonsense_is_refused(
    guard: GuardedClient, location: str, text: str
) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", "302 Found", location=location))

    async with serving(answer) as site:
        assert (await refusal(guard, site.url())).startswith(text)


async def test_an_endless_body_ends_at_the_byte_cap(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        await forever(writer, bytes(10_000))

    async with serving(answer) as site:
        with pytest.raises(TooLarge, match=r"127\.0\.0\.1 sent more than 0\.1 MB"):
            await guard.get(site.url())


async def test_an_endless_body_of_a_redirect_is_never_read(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET /there"):
            writer.write(reply(b"there"))
            return
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: /there\r\nconnection: close\r\n\r\n")
        await forever(writer, bytes(10_000))

    async with serving(answer) as site:
        assert await guard.get(site.url()) == b"there"


async def test_a_declared_length_above_the_cap_is_not_waited_for(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"a little", content_length="100001"))
        await asyncio.Event().wait()

    async with serving(answer) as site:
        with pytest.raises(TooLarge):
            await guard.get(site.url())


async def test_a_body_shorter_than_declared_is_an_error(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"short", content_length="500"))

    async with serving(answer) as site:
        assert await refusal(guard, site.url()) == "127.0.0.1 broke the connection off"


async def impatient() -> GuardedClient:
    return GuardedClient(LOOPBACK, Limits(total_s=0.3, connect_s=0.2))


@pytest.mark.parametrize("kind", ["silent", "dripping body", "dripping head"])
async def test_who_never_finishes_is_left_at_the_limit(kind: str) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == "silent":
            await asyncio.Event().wait()
        if kind == "dripping body":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 90000\r\n\r\n")
        await forever(writer, b"x", 0.02)

    guard = await impatient()
    async with serving(answer) as site:
        message = await refusal(guard, site.url("/secret/path?key=1"))
    assert message == "127.0.0.1 did not answer within 0.3 s"
    await guard.aclose()


async def test_a_name_server_that_never_answers_is_left_at_the_limit() -> None:
    release = threading.Event()

    def stuck(*_: object) -> Answers:
        release.wait(10)
        return []

    guard = GuardedClient((), Limits(total_s=0.2, connect_s=0.2), resolver=stuck)
    try:
        assert await refusal(guard, "http://slow.test/") == "slow.test did not answer within 0.2 s"
        assert not await guard.is_inside("http://slow.test/")
    finally:
        release.set()
    await guard.aclose()


async def test_a_caller_that_goes_away_leaves_nothing_running(guard: GuardedClient) -> None:
    closed = asyncio.Event()

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        started.set()
        try:
            await forever(writer, b"HTTP/1.1 200 OK\r\nx: y\r\n", 0.01)
        except ConnectionError:
            closed.set()

    started = asyncio.Event()
    async with serving(answer) as site:
        task = asyncio.create_task(guard.get(site.url()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(closed.wait(), 5)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity"])
async def test_a_compressed_answer_is_opened(guard: GuardedClient, encoding: str) -> None:
    bodies = {"deflate": zlib.compress(b"picture"), "identity": b"picture"}
    body = bodies.get(encoding, gzip.compress(b"picture"))

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        assert b"accept-encoding: identity" in head.lower()
        writer.write(reply(body, content_encoding=encoding))

    async with serving(answer) as site:
        assert await guard.get(site.url()) == b"picture"


async def test_a_compression_bomb_ends_at_the_byte_cap(guard: GuardedClient) -> None:
    body = gzip.compress(bytes(50_000_000))
    assert len(body) < 100_000

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(body, content_encoding="gzip"))

    async with serving(answer) as site:
        with pytest.raises(TooLarge):
            await guard.get(site.url())


ENDLESS_NAME = b"\x1f\x8b\x08\x08" + bytes(6) + b"n"  # gzip, in the middle of a file name
EMPTY_BLOCKS = b"\x00\x00\x00\xff\xff" * 2000  # deflate: whole, and nothing in them


@pytest.mark.parametrize(
    ("start", "more"),
    [(ENDLESS_NAME, b"n" * 10_000), (b"\x78\x9c", EMPTY_BLOCKS)],
    ids=["a name without end", "empty blocks without end"],
)
async def test_an_endless_body_that_grows_to_nothing_ends_at_the_byte_cap(
    guard: GuardedClient, start: bytes, more: bytes
) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n")
        writer.write(start)
        await forever(writer, more)

    async with serving(answer) as site:
        with pytest.raises(TooLarge, match=r"127\.0\.0\.1 sent more than 0\.1 MB"):
            await guard.get(site.url())


async def test_nothing_is_read_after_the_end_of_a_compressed_body(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n")
        writer.write(gzip.compress(b"picture"))
        await forever(writer, bytes(10_000))

    async with serving(answer) as site:
        message = await refusal(guard, site.url())
    assert message == "127.0.0.1 answered with gzip and something after its end"


async def test_a_compressed_body_that_is_cut_off_is_refused(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(gzip.compress(b"picture")[:-9], content_encoding="gzip"))

    async with serving(answer) as site:
        message = await refusal(guard, site.url())
    assert message == "127.0.0.1 answered with gzip that is cut off"


@pytest.mark.parametrize(("encoding", "text"), [("br", "encoding 'br'"), ("gzip", "broken gzip")])
async def test_an_answer_that_cannot_be_opened_is_refused(
    guard: GuardedClient, encoding: str, text: str
) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"not what it says", content_encoding=encoding))

    async with serving(answer) as site:
        assert text in await refusal(guard, site.url())
