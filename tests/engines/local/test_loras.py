"""LoRAs by name and by URL: what is taken, what is refused, what is kept and for how long."""

import asyncio
import contextlib
import hashlib
import io
import os
import re
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fluxserve.core.errors import EngineError, ErrorCode
from fluxserve.engines.local.loras import IN_USE_S, LoraFiles, LoraLibrary, header_trouble
from fluxserve.images.guard import GuardedClient, Limits

LOOPBACK = ("127.0.0.1/32",)


@dataclass(slots=True)
class Site:
    """A web server on this machine that gives the same bytes for every path."""

    body: bytes
    status: str = "200 OK"
    port: int = 0
    asked: list[bytes] = field(default_factory=list)

    def url(self, path: str = "/lora.safetensors") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split(b"\r\n")[0])
        length = f"content-length: {len(self.body)}\r\nconnection: close\r\n\r\n"
        writer.write(f"HTTP/1.1 {self.status}\r\n{length}".encode() + self.body)
        await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def serving(body: bytes, status: str = "200 OK") -> AsyncIterator[Site]:
    site = Site(body, status)
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site


@asynccontextmanager
async def library(
    folder: Path,
    *,
    allow: tuple[str, ...] = LOOPBACK,
    max_bytes: int = 100_000,
    cache_max_bytes: int = 100_000,
) -> AsyncIterator[LoraLibrary]:
    (folder / "loras").mkdir(exist_ok=True)
    found = LoraLibrary(
        LoraFiles(folder / "loras"),
        folder / "cache",
        GuardedClient(allow, Limits(total_s=5.0, size_max_bytes=max_bytes)),
        cache_max_bytes=cache_max_bytes,
    )
    yield found
    await found.aclose()


def data(seed: int = 0, size: int = 8) -> bytes:
    """A small file; its bytes count 32 * size and a header."""
    torch.manual_seed(seed)
    return save({"a.lora_A.weight": torch.randn(size), "a.lora_B.weight": torch.randn(7 * size)})


def kept(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(f"cache/{pattern}"))


async def test_a_url_gives_the_bytes_behind_it_and_is_asked_once(tmp_path: Path) -> None:
    async with serving(data()) as site, library(tmp_path) as loras:
        first, second = await asyncio.gather(*(loras.path_of(site.url()) for _ in range(2)))
        assert first == second
        assert first.read_bytes() == data()
        assert site.asked == [b"GET /lora.safetensors HTTP/1.1"]


async def test_what_a_url_gave_is_known_after_a_restart(tmp_path: Path) -> None:
    async with serving(data()) as site:
        for _ in range(2):
            async with library(tmp_path) as loras:
                await loras.path_of(site.url())
        assert len(site.asked) == 1


async def test_what_a_url_gave_is_asked_for_again_after_a_day(tmp_path: Path) -> None:
    async with serving(data(0)) as site, library(tmp_path) as loras:
        first = await loras.path_of(site.url())
        (note,) = kept(tmp_path, "*.url")
        os.utime(note, (time.time() - 90_000,) * 2)
        site.body = data(1)
        assert await loras.path_of(site.url()) != first


async def test_equal_bytes_of_two_urls_are_kept_once(tmp_path: Path) -> None:
    async with serving(data()) as site, library(tmp_path) as loras:
        one, two = await loras.path_of(site.url("/a")), await loras.path_of(site.url("/b"))
        assert one == two


async def test_a_name_is_a_file_of_the_folder(tmp_path: Path) -> None:
    async with library(tmp_path) as loras:
        (tmp_path / "loras" / "poster.safetensors").write_bytes(data())
        for name in ("poster", "poster.safetensors"):
            assert (await loras.path_of(name)).name == "poster.safetensors"


@pytest.mark.parametrize("name", ["nobody", "../cache/x", "/etc/passwd", "", "x" * 5000, "a\0b"])
async def test_a_name_that_is_no_file_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    async with library(tmp_path) as loras:
        with pytest.raises(EngineError, match="loras: there is no LoRA named") as caught:
            await loras.path_of(name)
        assert caught.value.field == "loras"
        assert caught.value.code is ErrorCode.INVALID_REQUEST


async def refused(loras: LoraLibrary, url: str) -> EngineError:
    with pytest.raises(EngineError, match=r"^loras: ") as caught:
        await loras.path_of(url)
    assert caught.value.field == "loras"
    return caught.value


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1/x", "ftp://192.0.2.1/x", "file:///etc/passwd", "http://[broken/x"]
)
async def test_only_https_is_taken_from_outside(tmp_path: Path, url: str) -> None:
    async with library(tmp_path) as loras:
        assert (await refused(loras, url)).code is ErrorCode.INVALID_REQUEST
    assert not (tmp_path / "cache").exists()


async def test_a_private_address_is_not_asked_unless_it_is_opened(tmp_path: Path) -> None:
    async with serving(data()) as site, library(tmp_path, allow=()) as loras:
        plain = await refused(loras, site.url())
        secure = await refused(loras, site.url().replace("http:", "https:"))
        assert not site.asked
    assert plain.code is ErrorCode.INVALID_REQUEST
    assert secure.code is ErrorCode.INPUT_UNREACHABLE
    assert "not a public address" in secure.message


async def test_a_missing_or_too_large_file_is_told_as_such(tmp_path: Path) -> None:
    async with serving(b"", "404 Not Found") as site, library(tmp_path) as loras:
        error = await refused(loras, site.url("/?token=hidden"))
        assert error.code is ErrorCode.INPUT_UNREACHABLE
        assert "answered 404" in error.message
        assert "hidden" not in error.message
    async with serving(data()) as site, library(tmp_path, max_bytes=100) as loras:
        assert (await refused(loras, site.url())).code is ErrorCode.TOO_LARGE


DAMAGED = {
    "empty": b"",
    "a page": b"<!doctype html><p>please log in",
    "cut off": data()[:-3],
    "too long": data() + b"0",
    "other shape": data().replace(b'"shape":[8]', b'"shape":[9]'),
    "other type": data().replace(b'"dtype":"F32"', b'"dtype":"F16"'),
    "negative": data().replace(b"[0,32]", b"[-1,2]"),
    "no tensors": save({}),
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "a list": (2).to_bytes(8, "little") + b"[]",
    "a number": (7).to_bytes(8, "little") + b'{"a":1}',
}


def trouble(data: bytes) -> str | None:
    return header_trouble(io.BytesIO(data), len(data))


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_found(name: str) -> None:
    assert trouble(DAMAGED[name])


def test_a_sound_header_is_no_trouble() -> None:
    assert trouble(data()) is None
    whole = save({"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(0)}, {"by": "us"})
    assert trouble(whole) is None


def test_a_header_that_claims_to_be_huge_is_not_read() -> None:
    class Reluctant(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size == 8
            return super().read(size)

    assert header_trouble(Reluctant((1 << 30).to_bytes(8, "little")), 1 << 31)


async def test_a_large_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    size = 24 << 20  # bytes
    body = save({"a.lora_A.weight": torch.zeros(size // 4)})

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        for start in range(0, len(body), 1 << 16):
            writer.write(body[start : start + (1 << 16)])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    bounds = {"max_bytes": 32 << 20, "cache_max_bytes": 32 << 20}
    async with server, library(tmp_path, **bounds) as loras:
        tracemalloc.start()
        try:
            path = await loras.path_of(url)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert path.stat().st_size == len(body)
        assert path.stem == hashlib.sha256(body).hexdigest()
    assert peak < 8 << 20


async def test_a_file_that_is_cut_off_or_grows_too_large_leaves_nothing(tmp_path: Path) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        writer.close()

    async def stops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000000\r\n\r\n" + bytes(2_000_000))
        await writer.drain()
        writer.close()

    wanted = ((endless, ErrorCode.TOO_LARGE), (stops, ErrorCode.INPUT_UNREACHABLE))
    for behave, code in wanted:
        server = await asyncio.start_server(behave, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, library(tmp_path, max_bytes=8_000_000) as loras:
            assert (await refused(loras, f"http://127.0.0.1:{port}/x")).code is code
        assert kept(tmp_path, "*") == []


async def test_a_request_that_is_canceled_over_a_fetch_leaves_nothing(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000000\r\n\r\n" + bytes(1_200_000))
        await writer.drain()
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the other side goes
        writer.close()
        gone.set()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, library(tmp_path, max_bytes=8_000_000) as loras:
        task = asyncio.create_task(loras.path_of(f"http://127.0.0.1:{port}/x"))
        async with asyncio.timeout(5):
            while not kept(tmp_path, "*.part"):
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kept(tmp_path, "*") == []
        async with asyncio.timeout(5):
            await gone.wait()


async def test_what_a_dead_process_left_behind_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    old, young = tmp_path / "cache" / "old.1.part", tmp_path / "cache" / "young.1.part"
    for path, age in ((old, IN_USE_S + 9), (young, 0.0)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    async with serving(data()) as site, library(tmp_path) as loras:
        await loras.path_of(site.url())
    assert [old.exists(), young.exists()] == [False, True]


async def test_what_is_no_safetensors_file_is_not_kept(tmp_path: Path) -> None:
    async with serving(DAMAGED["a page"]) as site, library(tmp_path) as loras:
        error = await refused(loras, site.url())
        assert re.search("what 127.0.0.1 sent is no safetensors file", error.message)
        assert error.code is ErrorCode.INVALID_REQUEST
        assert not kept(tmp_path, "*")


async def test_the_cache_lets_go_of_what_was_not_used_for_longest(tmp_path: Path) -> None:
    async with serving(data(0)) as site, library(tmp_path, cache_max_bytes=1000) as loras:
        paths = []
        for at in range(2):
            site.body = data(at)
            paths.append(await loras.path_of(site.url(f"/{at}")))
            age = time.time() - IN_USE_S * (3 - at)
            os.utime(paths[-1], (age, age))
        await loras.path_of(site.url("/0"))  # used again: now the other one is the older
        os.utime(paths[0], (time.time() - IN_USE_S - 9, paths[0].stat().st_mtime))
        site.body = data(2)
        third = await loras.path_of(site.url("/2"))
        assert [path.exists() for path in (*paths, third)] == [True, False, True]
        assert len(site.asked) == 3


async def test_files_in_use_are_never_removed(tmp_path: Path) -> None:
    async with serving(data(0)) as site, library(tmp_path, cache_max_bytes=600) as loras:
        first = await loras.path_of(site.url("/0"))
        site.body = data(1)
        error = await refused(loras, site.url("/1"))
        assert "leave no room" in error.message
        assert error.code is ErrorCode.ENGINE_FAILED
        assert first.exists()


async def test_using_a_file_does_not_make_it_a_new_one(tmp_path: Path) -> None:
    async with serving(data()) as site, library(tmp_path) as loras:
        path = await loras.path_of(site.url())
        before = path.stat().st_mtime_ns
        await loras.path_of(site.url())
        assert path.stat().st_mtime_ns == before
