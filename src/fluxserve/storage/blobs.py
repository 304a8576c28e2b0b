"""Bytes under keys, on a local disk, in S3 or in memory: `BlobStore` over obstore.

A delete leaves alone what somebody may be about to refer to (`core.blobkeys`): the sweep of orphans
takes it later if no row came.
"""

import asyncio
import re
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
            await obstore.put_async(self._store, key, data, attributes=attributes)
            if self._root is not None:
                # The store renames a finished file into place and flushes nothing. Nobody
                # knows the key before this returns, so flushing afterwards is early enough.
                await asyncio.to_thread(flush_down_from, self._root, self._root / key)
        except (BaseError, OSError) as error:
            raise Unavailable(f"the file could not be stored: {_reason(error)}") from error
        return BlobRef(key=key, mime=mime, size_bytes=len(data))

    async def get(self, key: str) -> bytes:
        self._check(key)
        try:
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
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=end))
        except (BaseError, OSError) as error:
            raise _explained(error) from error

    async def size(self, key: str) -> int:
        self._check(key)
        try:
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
                return Blobs(LocalStore(root), clock=clock)
            case "s3" if parts.netloc:
                retry: RetryConfig = {"max_retries": RETRIES_MAX, "retry_timeout": RETRY_TIMEOUT}
                return Blobs(S3Store.from_url(url, retry_config=retry), clock=clock)
            case "memory":
                return Blobs(MemoryStore(), clock=clock)
    except (BaseError, OSError) as error:
        raise StartupError(f"files.url = {url} cannot be opened: {_reason(error)}") from error
    raise StartupError(f"files.url: file:///PATH or s3://BUCKET/PREFIX, not {url}")


def _explained(error: Exception) -> NotFound | Unavailable:
    if isinstance(error, NotFoundError | FileNotFoundError):
        return NotFound("no such file")
    return Unavailable(f"the file store does not answer: {_reason(error)}")


def _reason(error: Exception) -> str:
    """One short line without paths or keys."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
