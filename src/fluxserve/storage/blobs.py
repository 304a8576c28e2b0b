"""Bytes under keys, on a local disk, in S3 or in memory: `BlobStore` over obstore.

A delete leaves alone what somebody may be about to refer to (`core.blobkeys`): the sweep of orphans
takes it later if no row came.
"""

import asyncio
import errno
import re
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, MemoryStore, S3Store

from fluxserve.core.blobkeys import may_go
from fluxserve.core.errors import InvalidRequest, NotFound, StartupError, Unavailable
from fluxserve.core.request import BlobRef
from fluxserve.storage.flushing import flush_down_from

if TYPE_CHECKING:  # obstore keeps its types there
    from obstore.store import RetryConfig

RETRIES_MAX = 5
RETRY_TIMEOUT = timedelta(seconds=30)  # the library's own three minutes outlast every caller

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7}")


def _now() -> datetime:
    return datetime.now(UTC)


class Blobs:
    """`BlobStore` on any object store; `clock` tells which input blobs are too young to go."""

    def __init__(
        self,
        store: LocalStore | S3Store | MemoryStore,
        *,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._store = store
        self._root = store.prefix if isinstance(store, LocalStore) else None
        self._keeps_mime = isinstance(store, S3Store)
        self._clock = clock

    async def put(self, key: str, data: bytes, mime: str) -> BlobRef:
        """Durable when it returns; InvalidRequest for a key that is no key."""
        if not _KEY.fullmatch(key):
            raise InvalidRequest(f"not a key: {key!r}")
        attributes = {"Content-Type": mime} if self._keeps_mime else None
        try:
            if self._root is not None:
                await asyncio.to_thread(self._put_file, self._root, key, data)
            else:
                await obstore.put_async(self._store, key, data, attributes=attributes)
        except (BaseError, OSError) as error:
            raise Unavailable(f"the file could not be stored: {_reason(error)}") from error
        return BlobRef(key=key, mime=mime, size_bytes=len(data))

    def _put_file(self, root: Path, key: str, data: bytes) -> None:
        # The store renames a finished file into place and flushes nothing. Nobody knows the key
        # before this returns, so flushing afterwards is early enough.
        obstore.put(self._store, key, data)
        flush_down_from(root, root / key)

    async def get(self, key: str) -> bytes:
        self._check(key)
        try:
            if self._root is not None:
                path = self._root / key
                return await asyncio.to_thread(_read, path, 0, _size(path))
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())
        except (BaseError, OSError) as error:
            raise _explained(error) from error

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes start..end (exclusive), cut at the end of the blob."""
        end = min(end, await self.size(key))
        if start >= end:
            return b""
        try:
            if self._root is not None:
                return await asyncio.to_thread(_read, self._root / key, start, end)
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=end))
        except (BaseError, OSError) as error:
            raise _explained(error) from error

    async def size(self, key: str) -> int:
        self._check(key)
        try:
            if self._root is not None:
                return _size(self._root / key)  # a look at a name: not worth a thread
            return (await obstore.head_async(self._store, key))["size"]
        except (BaseError, OSError) as error:
            raise _explained(error) from error

    async def delete(self, key: str) -> None:
        """No error when it is gone already. An input of yesterday or today stays."""
        self._check(key)
        if not may_go(key, self._clock()):
            return
        try:
            await obstore.delete_async(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise _explained(error) from error

    async def written_before(self, at: datetime) -> AsyncIterator[Sequence[str]]:
        """The keys of all blobs last written before `at`, in groups."""
        async for group in obstore.list(self._store, chunk_size=500):
            keys = [str(entry["path"]) for entry in group if entry["last_modified"] < at]
            if keys:
                yield keys

    def _check(self, key: str) -> None:
        if not _KEY.fullmatch(key):
            raise NotFound("no such file")


def open_blobs(url: str, clock: Callable[[], datetime] = _now) -> Blobs:
    """file:///PATH, s3://BUCKET/PREFIX or memory://; StartupError for anything else.

    S3 credentials, region and endpoint come from where the AWS tools look for them.
    """
    parts = urlsplit(url)
    try:
        match parts.scheme:
            case "file" if parts.path.startswith("/") and not parts.netloc:
                root = Path(unquote(parts.path))
                root.mkdir(parents=True, exist_ok=True)
                # Every prediction has a folder: one that is left empty goes with its last picture.
                return Blobs(LocalStore(root, automatic_cleanup=True), clock=clock)
            case "s3" if parts.netloc:
                retry: RetryConfig = {"max_retries": RETRIES_MAX, "retry_timeout": RETRY_TIMEOUT}
                return Blobs(S3Store.from_url(url, retry_config=retry), clock=clock)
            case "memory":
                return Blobs(MemoryStore(), clock=clock)
    except (BaseError, OSError) as error:
        raise StartupError(f"files.url = {url} cannot be opened: {_reason(error)}") from error
    raise StartupError(f"files.url: file:///PATH or s3://BUCKET/PREFIX, not {url}")


def _size(path: Path) -> int:
    """Bytes of a file; FileNotFoundError where there is none, nor below another file."""
    try:
        found = path.stat()
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "a folder")
    return found.st_size


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _explained(error: Exception) -> NotFound | Unavailable:
    if isinstance(error, NotFoundError | FileNotFoundError):
        return NotFound("no such file")
    return Unavailable(f"the file store does not answer: {_reason(error)}")


def _reason(error: Exception) -> str:
    """One short line without paths or keys."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
