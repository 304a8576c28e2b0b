"""Connections to a provider: whole answers only, none taken for another, nothing sent twice."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trustme

from fluxserve.engines.upstream.lines import Broken, Origin, Overlong, Reply, Unconnected

Answerer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"


@asynccontextmanager
async def answering(
    *answers: bytes, tls: ssl.SSLContext | None = None, pieces: int = 0
) -> AsyncIterator[tuple[str, list[bytes], list[int]]]:
    """A server that sends `answers` in turn, one a request, then closes.

    `pieces`: bytes sent at once, 0: all. Yields its origin, the heads it read, and for each of
    them the number of its connection.
    """
    left = list(answers)
    heads: list[bytes] = []
    lines: list[int] = []
    counter = iter(range(1000))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(counter)
        try:
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                heads.append(head)
                lines.append(number)
                answer = left.pop(0)
                for start in range(0, len(answer), pieces or len(answer)):
                    writer.write(answer[start : start + (pieces or len(answer))])
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"close" in answer or b"content-length: 9999" in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}", heads, lines


async def get(origin: Origin, cap: int = 100_000) -> Reply:
    async with asyncio.timeout(5):
        return await origin.exchange("GET", "/x?y=1", {"x-key": "k"}, b"", cap)


async def test_a_connection_is_used_again() -> None:
    async with answering(OK, OK, OK) as (url, heads, lines):
        origin = Origin(url, 2.0)
        for _ in range(3):
            assert (await get(origin)).body == b"ab"
        origin.close()
    assert lines == [0, 0, 0]
    assert heads[0].startswith(b"GET /x?y=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nx-key: k\r\n" in heads[0]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nab",
        b"HTTP/1.0 200 OK\r\nx: close\r\n\r\nab",
    ],
    ids=["chunked", "interim answer", "until the end", "old"],
)
@pytest.mark.parametrize("pieces", [0, 1])
async def test_an_answer_is_read_whole_however_it_is_sent(answer: bytes, pieces: int) -> None:
    async with answering(answer, pieces=pieces) as (url, _, _):
        reply = await get(Origin(url, 2.0))
    assert (reply.status, reply.body) == (200, b"ab")
    assert "link" not in reply.headers


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nx: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nx: close\r\n",
        b"SSH-2.0-OpenSSH close\r\n",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x-close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nab",
    ],
    ids=["cut", "cut chunk", "cut head", "no HTTP", "another protocol", "coding", "no gzip"],
)
async def test_half_an_answer_is_none(answer: bytes) -> None:
    async with answering(answer) as (url, _, _):
        with pytest.raises(Broken):
            await get(Origin(url, 2.0))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"a" * 2000,
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"a" * 2000,
        b"HTTP/1.1 200 OK\r\n" + b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 3000,
    ],
    ids=["body", "open end", "headers"],
)
async def test_an_answer_without_measure_is_cut_off(answer: bytes) -> None:
    async with answering(answer) as (url, _, _):
        with pytest.raises(Overlong):
            await get(Origin(url, 2.0), cap=1000)


async def test_a_compressed_answer_counts_as_large_as_it_gets() -> None:
    packed = gzip.compress(b"a" * 1_000_000)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
    answer = head % len(packed) + packed
    async with answering(answer, answer) as (url, _, _):
        origin = Origin(url, 2.0)
        assert len((await get(origin, cap=1_000_000)).body) == 1_000_000
        with pytest.raises(Overlong):
            await get(origin, cap=999_999)


async def test_an_answer_that_nobody_asked_for_spoils_its_connection() -> None:
    async with answering(OK + OK.replace(b"ab", b"no"), OK) as (url, _, lines):
        origin = Origin(url, 2.0)
        assert (await get(origin)).body == b"ab"
        assert (await get(origin)).body == b"ab"
        origin.close()
    assert lines == [0, 1]


async def test_a_request_that_was_given_up_spoils_its_connection() -> None:
    late = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nlate"
    async with answering(late, OK) as (url, _, lines):
        origin = Origin(url, 2.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await origin.exchange("GET", "/", {}, b"", 100)
        assert (await get(origin)).body == b"ab"
        origin.close()
    assert lines == [0, 1]


async def test_a_connection_closed_while_it_waited_is_not_used() -> None:
    async with answering(OK + b"") as (url, _, _):
        origin = Origin(url, 2.0)
        assert (await get(origin)).body == b"ab"
        async with asyncio.timeout(5):
            while not origin._idle[0].is_closed:
                await asyncio.sleep(0)
    with pytest.raises(Unconnected):
        await get(origin)


async def test_certificates_are_checked() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with answering(OK, OK, tls=server) as (url, _, _):
        origin = Origin(url, 2.0, client)
        assert (await get(origin)).body == b"ab"
        origin.close()
        with pytest.raises(Unconnected):
            await get(Origin(url, 2.0))
