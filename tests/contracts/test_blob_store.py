"""What every blob store promises."""

import pytest

from fluxserve.core.blobkeys import input_key
from fluxserve.core.errors import InvalidRequest, NotFound
from fluxserve.core.ports import BlobStore
from fluxserve.core.request import BlobRef
from tests.contracts.conftest import Clock
from tests.contracts.material import NOW, after

KEY = "outputs/0a/1.png"


async def test_bytes_come_back(blobs: BlobStore) -> None:
    ref = await blobs.put(KEY, b"hello", "image/png")
    assert ref == BlobRef(key=KEY, mime="image/png", size_bytes=5)
    assert await blobs.get(KEY) == b"hello"
    assert await blobs.size(KEY) == 5


async def test_an_empty_blob_is_a_blob(blobs: BlobStore) -> None:
    await blobs.put(KEY, b"", "image/png")
    assert await blobs.get(KEY) == b""
    assert await blobs.get_range(KEY, 0, 1) == b""


async def test_a_second_put_replaces_the_first(blobs: BlobStore) -> None:
    await blobs.put(KEY, b"hello", "image/png")
    await blobs.put(KEY, b"bye", "image/png")
    assert await blobs.get(KEY) == b"bye"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 5, b"hello"), (1, 3, b"el"), (3, 99, b"lo"), (5, 9, b""), (3, 3, b""), (4, 2, b"")],
)
async def test_a_range_is_cut_at_the_end(
    blobs: BlobStore, start: int, end: int, expected: bytes
) -> None:
    await blobs.put(KEY, b"hello", "image/png")
    assert await blobs.get_range(KEY, start, end) == expected


async def test_what_was_deleted_is_not_found(blobs: BlobStore) -> None:
    await blobs.put(KEY, b"hello", "image/png")
    await blobs.delete(KEY)
    await blobs.delete(KEY)
    with pytest.raises(NotFound):
        await blobs.get(KEY)
    with pytest.raises(NotFound):
        await blobs.size(KEY)
    with pytest.raises(NotFound):
        await blobs.get_range(KEY, 0, 1)


BAD = ["", "/etc/passwd", "../a", "a/../b", "a/..", "a//b", ".hidden", "a/./b", "a\\b", "a\0", "a/"]


@pytest.mark.parametrize("key", BAD)
async def test_a_key_cannot_leave_the_store(blobs: BlobStore, key: str) -> None:
    with pytest.raises(InvalidRequest):
        await blobs.put(key, b"x", "image/png")
    for read in (blobs.get, blobs.size, blobs.delete):
        with pytest.raises(NotFound):
            await read(key)


async def test_an_input_survives_a_delete_until_a_day_after_its_own(
    blobs: BlobStore, clock: Clock
) -> None:
    key = input_key("ab", "image/png", NOW)
    await blobs.put(key, b"hello", "image/png")
    for hours in (0, 24):
        clock.now = after(hours * 3600)
        await blobs.delete(key)
        assert await blobs.get(key) == b"hello"
    clock.now = after(48 * 3600)
    await blobs.delete(key)
    with pytest.raises(NotFound):
        await blobs.get(key)
