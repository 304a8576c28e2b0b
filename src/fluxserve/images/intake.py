"""The intake of pictures: inline bytes are checked and stored, URLs are fetched when a job runs.

take(bytes)  -> prepare (in a thread) -> blob "inputs/<day>/<sha256>.<ext>" -> ImageInput(blob)
fetch(url)   -> our own link: the blob behind it;  data URI: decoded;  else: through the guard
load(input)  -> EncodedImage, from the store or fetched
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

from fluxserve.core.blobkeys import input_key
from fluxserve.core.errors import InputUnreachable, InvalidRequest, NotFound, TooLarge
from fluxserve.core.ports import BlobStore, EncodedImage
from fluxserve.core.request import BlobRef, ImageInput
from fluxserve.images import codec, inline
from fluxserve.images.guard import GuardedClient, host_of

OwnLink = Callable[[str], Awaitable[BlobRef | None]]
SIZE_MAX_BYTES = 32 * 1024 * 1024
CHECKS_AT_ONCE = 2  # each may hold a picture of the largest size, decoded
ACCEPT = "image/png, image/jpeg, image/webp, image/*;q=0.8, */*;q=0.5"
CHECKED = {"image/jpeg", "image/png", "image/webp"}  # what `prepare` makes of any picture


def _now() -> datetime:
    return datetime.now(UTC)


class ImageIntake:
    """Brings input pictures in: checked, upright, stored. Implements `core.ports.Intake`."""

    def __init__(
        self,
        blobs: BlobStore,
        guard: GuardedClient,
        own: OwnLink,
        *,
        pixels_max: int = codec.PIXELS_MAX,
        size_max_bytes: int = SIZE_MAX_BYTES,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        """`own` tells which blob a URL of this server means: None for every other URL, and
        NotFound for one of ours that no longer leads anywhere."""
        self._blobs = blobs
        self._guard = guard
        self._own = own
        self._pixels_max = pixels_max
        self._size_max_bytes = size_max_bytes
        self._clock = clock
        self._checks = asyncio.Semaphore(CHECKS_AT_ONCE)

    async def take(self, data: bytes, field_name: str) -> ImageInput:
        """Sniff, check and store inline bytes; InvalidRequest or TooLarge naming the field.

        The same picture is stored once a day, under its SHA-256; width and height are upright.
        Always written, never "it is there already": see `core.blobkeys`.
        """
        if len(data) > self._size_max_bytes:
            cap, size = self._size_max_bytes / 1e6, len(data) / 1e6
            message = f"{field_name}: at most {cap:g} MB, not {size:.1f} MB"
            raise TooLarge(message, field=field_name)
        image = await self._prepare(data, field_name)
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(image.data).hexdigest())
        key = input_key(sha256, image.mime, self._clock())
        ref = await self._blobs.put(key, image.data, image.mime)
        ref = replace(ref, sha256=sha256, width=image.width, height=image.height)
        return ImageInput(blob=ref, field_name=field_name)

    async def take_text(self, text: str, field_name: str) -> ImageInput:
        """The same for a data URI or bare base64."""
        return await self.take(await self._decode(text, field_name), field_name)

    async def check_url(self, url: str, field_name: str) -> None:
        """Refuse at creation what can be refused without asking the network.

        Raises InputUnreachable naming the field: no http(s), malformed, a private address, or one
        of our own links that leads nowhere any more. Our own live links pass, wherever we listen.
        """
        try:
            if await self._own(url) is None:
                self._guard.check(url)
        except NotFound as error:
            message = f"{field_name}: a file of this server that is no longer there"
            raise InputUnreachable(message, field=field_name) from error
        except InputUnreachable as error:
            message = f"{field_name}: {error.message}"
            raise InputUnreachable(message, field=field_name) from error

    async def fetch(self, url: str) -> EncodedImage:
        """Fetch a picture through the address guard; InputUnreachable, InvalidRequest, TooLarge.

        Messages name the host of the URL and nothing else of it.
        """
        if inline.is_data_uri(url):
            return await self._prepare(await self._decode(url, "image"), "image")
        try:
            ref = await self._own(url)
            if ref is not None:
                return await self._stored(ref)
        except NotFound as error:
            raise InputUnreachable("a file of this server that is no longer there") from error
        data = await self._guard.get(url, accept=ACCEPT)
        try:
            return await self._prepare(data, "")
        except InvalidRequest as error:
            raise InvalidRequest(f"image from {host_of(url)}: {error.message}") from error

    async def load(self, image: ImageInput) -> EncodedImage:
        """The bytes behind an input: from the store, or fetched."""
        if image.blob is not None:
            return await self._stored(image.blob)
        assert image.url is not None
        return await self.fetch(image.url)

    async def _stored(self, ref: BlobRef) -> EncodedImage:
        data = await self._blobs.get(ref.key)
        if ref.width and ref.mime in CHECKED:  # went through `prepare` when it was stored
            return EncodedImage(data=data, mime=ref.mime, width=ref.width, height=ref.height)
        return await self._prepare(data, "image")

    async def _prepare(self, data: bytes, field_name: str) -> EncodedImage:
        async with self._checks:
            return await asyncio.to_thread(
                codec.prepare, data, field=field_name, pixels_max=self._pixels_max
            )

    async def _decode(self, text: str, field_name: str) -> bytes:
        """Inline text to bytes; in a thread, because 8 MB take some 50 ms."""
        read = inline.decode_data_uri if inline.is_data_uri(text) else inline.decode_base64
        return await asyncio.to_thread(
            read, text, field=field_name, size_max_bytes=self._size_max_bytes
        )
