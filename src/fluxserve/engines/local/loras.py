"""LoRAs by name, or by URL: fetched, checked, kept under the hash of their bytes. No torch.

    "poster"             data_dir/loras/poster.safetensors
    "https://host/x.."   guarded client -> data_dir/cache/loras/*.part -> header check
                         -> data_dir/cache/loras/SHA-256.safetensors

Plain http is taken from networks of `fetch.allow` only. What a URL gave is used again for a day.
A file goes to the disk as it comes; a megabyte of it is in memory at a time, and its header once.
"""

import asyncio
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from fluxserve.core.errors import EngineError, ErrorCode, FluxserveError
from fluxserve.images.guard import GuardedClient, host_of

KNOWN_S = 86400.0  # what a URL gave is not asked for again for so long
IN_USE_S = 900.0  # a file that was handed out is not removed for so long: a job may be reading it
HEADER_MAX = 8_000_000  # bytes; a LoRA of every layer of FLUX.1 has a quarter of a million
FETCHES_MAX = 2  # at once: what is being fetched lies beside the bound of the cache
PIECE_BYTES = 1 << 20  # written at once
# Bytes of one value, by the format's name of its type.
_SIZES: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


class LoraSource(Protocol):
    """Where adapters come from."""

    async def path_of(self, name: str) -> Path:
        """The file behind a name or URL; EngineError with the field `loras` when there is none.

        Its code tells whose fault that is: INVALID_REQUEST (the caller's), INPUT_UNREACHABLE or
        TOO_LARGE (the other server's), ENGINE_FAILED (ours).
        """
        ...

    async def aclose(self) -> None: ...


class LoraFiles:
    """Adapters by name in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def path_of(self, name: str) -> Path:
        return await asyncio.to_thread(self._find, name)

    async def aclose(self) -> None:
        """Nothing is open."""

    def _find(self, name: str) -> Path:
        folder = self._folder.resolve()
        try:
            for candidate in (folder / name, folder / f"{name}.safetensors"):
                found = candidate.resolve()
                if found.is_relative_to(folder) and found.is_file():
                    return found
        except (OSError, ValueError):  # longer than any name of a file, or with a zero in it
            pass
        raise _refusal(
            f"there is no LoRA named {name[:100]!r} on this server; give the name of a file in its"
            " folder of LoRAs, or an https URL"
        )


class LoraLibrary:
    """Adapters by name or by URL; what was fetched is kept, bounded in bytes."""

    def __init__(
        self, names: LoraSource, cache: Path, client: GuardedClient, *, cache_max_bytes: int
    ) -> None:
        """`client` sets how large and how slow a file may be; it is closed with the library."""
        self._names = names
        self._cache = cache
        self._client = client
        self._cache_max_bytes = cache_max_bytes
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._fetches = asyncio.Semaphore(FETCHES_MAX)

    async def aclose(self) -> None:
        await self._names.aclose()
        await self._client.aclose()

    async def path_of(self, name: str) -> Path:
        if "://" not in name:
            return await self._names.path_of(name)
        known = hashlib.sha256(name.encode()).hexdigest()  # a URL may carry a secret
        lock = self._locks.setdefault(known, asyncio.Lock())
        async with lock:
            found = await asyncio.to_thread(self._known, known)
            if found is None:
                async with self._fetches:
                    await self._check(name)
                    draft = _Draft(self._cache, known)
                    try:
                        await self._fetch(name, draft)
                        found = await asyncio.to_thread(self._keep, known, draft, host_of(name))
                    finally:
                        await asyncio.to_thread(draft.discard)
        return found

    async def _check(self, url: str) -> None:
        """Refuse what can be refused before anything is written."""
        try:
            if urlsplit(url).scheme.lower() != "https" and not await self._client.is_inside(url):
                raise _refusal("a URL of a LoRA begins with https://")
        except ValueError as error:
            raise _refusal("the URL is malformed") from error

    async def _fetch(self, url: str, draft: "_Draft") -> None:
        try:
            await self._client.save(url, draft.take)
            await asyncio.to_thread(draft.finish)
        except OSError as error:
            raise _no_room() from error
        except FluxserveError as error:
            raise _refusal(error.message, error.code) from error

    def _known(self, known: str) -> Path | None:
        """The file that a URL gave not long ago, if it is still there."""
        note = self._cache / f"{known}.url"
        try:
            if time.time() - note.stat().st_mtime > KNOWN_S:
                return None
            found = self._cache / f"{note.read_text(encoding='ascii')}.safetensors"
            _touch(found)
        except (OSError, ValueError):
            return None
        return found

    def _keep(self, known: str, draft: "_Draft", host: str) -> Path:
        """Check a file and give it its name, or refuse it."""
        with draft.path.open("rb") as file:
            trouble = header_trouble(file, draft.size_bytes)
        if trouble:
            raise _refusal(f"what {host} sent is no safetensors file: {trouble}")
        found = self._cache / f"{draft.sha256}.safetensors"
        try:
            if not found.exists():
                self._make_room(draft.size_bytes)
                draft.path.replace(found)
            _touch(found)
            note = draft.path.with_suffix(".note")
            note.write_text(draft.sha256, encoding="ascii")
            note.replace(self._cache / f"{known}.url")
        except OSError as error:
            raise _no_room() from error
        return found

    def _make_room(self, size_bytes: int) -> None:
        """Remove what was not used for longest, until so many bytes more are within the bound."""
        now = time.time()
        files = sorted(_stats(self._cache.glob("*.safetensors")), key=lambda file: file[1].st_atime)
        total = size_bytes + sum(stat.st_size for _, stat in files)
        for path, stat in files:
            if total > self._cache_max_bytes and now - stat.st_atime > IN_USE_S:
                path.unlink(missing_ok=True)
                total -= stat.st_size
        if total > self._cache_max_bytes:
            raise _no_room(
                f"this server keeps {self._cache_max_bytes / 1e6:g} MB of fetched LoRAs, and those"
                " in use leave no room for this one"
            )
        for note, stat in _stats(self._cache.glob("*.url")):
            if now - stat.st_mtime > KNOWN_S:
                note.unlink(missing_ok=True)
        for part, stat in _stats((*self._cache.glob("*.part"), *self._cache.glob("*.note"))):
            if now - stat.st_mtime > IN_USE_S:  # of a process that died over it
                part.unlink(missing_ok=True)


class _Draft:
    """A file on its way to the disk, hashed as it goes. `take` from one task at a time.

    Whoever gives up does not wait for a piece that a thread has in hand: hence the lock.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.{os.getpid()}.part"
        self.size_bytes = 0
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._piece = bytearray()
        self._lock = threading.Lock()
        self._is_over = False

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def take(self, chunk: bytes) -> None:
        """OSError when the disk is full."""
        self._piece += chunk
        if len(self._piece) >= PIECE_BYTES:
            await asyncio.to_thread(self._put)

    def finish(self) -> None:
        self._put()
        with self._lock:
            self._close()

    def discard(self) -> None:
        """Leave nothing behind but what was given another name."""
        with self._lock:
            self._is_over = True
            self._close()
            self.path.unlink(missing_ok=True)

    def _put(self) -> None:
        with self._lock:
            if self._is_over:
                return
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb")
            piece, self._piece = self._piece, bytearray()
            self._file.write(piece)
            self._hash.update(piece)
            self.size_bytes += len(piece)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def header_trouble(file: BinaryIO, size_bytes: int) -> str | None:
    """What is wrong with the header of a safetensors file, or None. Values are not looked at."""
    length = int.from_bytes(file.read(8), "little")
    if size_bytes < 8 or not 2 <= length <= min(HEADER_MAX, size_bytes - 8):
        return "it does not begin with a header"
    try:
        said = json.loads(file.read(length))
    except (ValueError, RecursionError):
        return "its header is not JSON"
    if not isinstance(said, dict):
        return "its header is no table"
    tensors = {name: entry for name, entry in said.items() if name != "__metadata__"}
    if not tensors:
        return "it holds no tensors"
    space = size_bytes - 8 - length
    end = 0
    try:
        for start, stop, size in sorted(_extent(entry) for entry in tensors.values()):
            if start != end or stop - start != size:
                return "its tensors do not lie where its header says"
            end = stop
    except (AttributeError, TypeError, ValueError, KeyError):
        return "its header describes no tensors"
    return None if end == space else f"{end} bytes of values were announced, {space} came"


def _extent(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    """Where a tensor begins and ends, and how many bytes its shape takes."""
    start, stop = entry["data_offsets"]
    numbers = [start, stop, *entry["shape"]]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("no places or sides")
    return start, stop, _SIZES[entry["dtype"]] * math.prod(entry["shape"])


def _refusal(message: str, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> EngineError:
    """Whoever asked named a wrong one, unless `code` says that it is somebody else's fault."""
    error = EngineError(f"loras: {message}", field="loras")
    error.code = code
    return error


def _no_room(message: str = "this server has no room to keep it") -> EngineError:
    return _refusal(message, ErrorCode.ENGINE_FAILED)


def _touch(path: Path) -> None:
    """Note that it is used now; its time of change stays, by which readers know it again."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _stats(paths: Iterable[Path]) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in paths:
        try:
            found.append((path, path.stat()))
        except OSError:  # somebody else removed it
            continue
    return found
