"""LoRAs by name, or by URL: fetched, checked, kept under the hash of their bytes. No torch.

    "poster"             data_dir/loras/poster.safetensors
    "https://host/x.."   guarded client -> header check -> data_dir/cache/loras/SHA-256.safetensors

Plain http is taken from networks of `fetch.allow` only. What a URL gave is used again for a day.
"""

import asyncio
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from fluxserve.core.errors import EngineError, ErrorCode, FluxserveError
from fluxserve.images.guard import GuardedClient, host_of

KNOWN_S = 86400.0  # what a URL gave is not asked for again for so long
IN_USE_S = 900.0  # a file that was handed out is not removed for so long: a job may be reading it
HEADER_MAX = 100_000_000  # bytes, as the reference implementation of the format has it
FETCHES_MAX = 2  # at once: each is held in memory until it is checked
# Bytes of one value, by the format's name of its type.
_SIZES: Mapping[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


class LoraSource(Protocol):
    """Where adapters come from."""

    async def path_of(self, name: str) -> Path:
        """The file behind a name or URL; EngineError with the field `loras` when there is none."""
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
                    data = await self._fetch(name)
                    found = await asyncio.to_thread(self._keep, known, data, host_of(name))
        return found

    async def _fetch(self, url: str) -> bytes:
        try:
            if urlsplit(url).scheme.lower() != "https" and not await self._client.is_inside(url):
                raise _refusal("a URL of a LoRA begins with https://")
            return await self._client.get(url)
        except ValueError as error:
            raise _refusal("the URL is malformed") from error
        except EngineError:
            raise
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

    def _keep(self, known: str, data: bytes, host: str) -> Path:
        """Check a file and store it whole or not at all."""
        if trouble := header_trouble(data):
            raise _refusal(f"what {host} sent is no safetensors file: {trouble}")
        self._cache.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(data).hexdigest()
        found = self._cache / f"{digest}.safetensors"
        if not found.exists():
            self._make_room(len(data))
            _write(found, data)
        _touch(found)
        _write(self._cache / f"{known}.url", digest.encode())
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
            raise _refusal(
                f"this server keeps {self._cache_max_bytes / 1e6:g} MB of fetched LoRAs, and those"
                " in use leave no room for this one"
            )
        for note, stat in _stats(self._cache.glob("*.url")):
            if now - stat.st_mtime > KNOWN_S:
                note.unlink(missing_ok=True)


def header_trouble(data: bytes) -> str | None:
    """What is wrong with the header of a safetensors file, or None. Values are not looked at."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(HEADER_MAX, len(data) - 8):
        return "it does not begin with a header"
    try:
        said = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return "its header is not JSON"
    if not isinstance(said, dict):
        return "its header is no table"
    tensors = {name: entry for name, entry in said.items() if name != "__metadata__"}
    if not tensors:
        return "it holds no tensors"
    space = len(data) - 8 - length
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


def _refusal(message: str, code: ErrorCode | None = None) -> EngineError:
    error = EngineError(f"loras: {message}", field="loras")
    error.code = code or error.code
    return error


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise _refusal("this server has no room to keep it") from error


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
