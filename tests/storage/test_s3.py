"""What the file store owes to S3 besides the contract: prefixes, types, troubles in plain words."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import obstore
import pytest
from obstore.store import S3Store

from fluxserve.core.errors import NotFound, Unavailable
from fluxserve.storage.blobs import open_blobs

Bucket = Callable[[], str]


async def test_a_blob_lies_under_the_prefix_with_its_type(bucket: Bucket) -> None:
    url = bucket()
    await open_blobs(f"{url}/house/one").put("outputs/a.png", b"hello", "image/png")
    found = await obstore.get_async(S3Store.from_url(url), "house/one/outputs/a.png")
    assert bytes(await found.bytes_async()) == b"hello"
    assert found.attributes["Content-Type"] == "image/png"


async def test_prefixes_of_one_bucket_do_not_see_each_other(bucket: Bucket) -> None:
    url = bucket()
    one, other = open_blobs(f"{url}/one"), open_blobs(f"{url}/other")
    await one.put("a.png", b"hello", "image/png")
    with pytest.raises(NotFound):
        await other.get("a.png")
    later = datetime.now(UTC) + timedelta(days=1)
    assert [keys async for keys in other.written_before(later)] == []
    assert [list(keys) async for keys in one.written_before(later)] == [["a.png"]]


async def test_a_large_blob_survives(bucket: Bucket) -> None:
    """Above five megabytes obstore sends a blob in parts."""
    data = bytes(range(256)) * 4 * 12_000
    blobs = open_blobs(bucket())
    await blobs.put("big.png", data, "image/png")
    assert await blobs.size("big.png") == len(data)
    assert await blobs.get("big.png") == data
    assert await blobs.get_range("big.png", 7_000_001, 7_000_005) == data[7_000_001:7_000_005]


async def test_a_missing_bucket_is_no_missing_file(bucket: Bucket) -> None:
    blobs = open_blobs(f"{bucket()}-that-is-not-there")
    with pytest.raises(Unavailable, match="could not be stored"):
        await blobs.put("a.png", b"x", "image/png")


async def test_a_store_that_is_not_there_is_told_without_its_address(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        await open_blobs(url).put("a.png", b"x", "image/png")
    assert "127.0.0.1" not in caught.value.message
