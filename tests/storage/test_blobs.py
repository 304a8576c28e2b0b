"""Blobs on a local disk, and what happens when the disk does not play along."""

import asyncio
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from fluxserve.core.errors import NotFound, StartupError, Unavailable
from fluxserve.storage.blobs import open_blobs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a folder"


async def test_a_blob_is_a_plain_file_under_the_folder(folder: Path) -> None:
    blobs = open_blobs(folder.as_uri())
    await blobs.put("outputs/a/0.png", b"hello", "image/png")
    assert (folder / "outputs" / "a" / "0.png").read_bytes() == b"hello"
    assert [path.name for path in (folder / "outputs" / "a").iterdir()] == ["0.png"]


async def test_a_store_that_fails_says_so_without_paths(folder: Path) -> None:
    blobs = open_blobs(folder.as_uri())
    (folder / "outputs").write_text("a file where a folder should be")
    with pytest.raises(Unavailable) as caught:
        await blobs.put("outputs/a.png", b"x", "image/png")
    assert str(folder) not in caught.value.message


async def test_a_folder_is_no_blob(folder: Path) -> None:
    blobs = open_blobs(folder.as_uri())
    await blobs.put("outputs/a.png", b"x", "image/png")
    with pytest.raises(NotFound):
        await blobs.get("outputs")
    with pytest.raises(Unavailable):
        await blobs.delete("outputs")
    assert await blobs.get("outputs/a.png") == b"x"


async def test_a_file_that_cannot_be_flushed_is_not_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = open_blobs(folder.as_uri())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Unavailable, match="No space left on device"):
        await blobs.put("outputs/a.png", b"x", "image/png")


async def test_the_store_going_away_is_no_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = open_blobs("memory://")
    await blobs.put("a", b"hello", "image/png")

    async def broken(*_: object, **__: object) -> None:
        raise obstore.exceptions.GenericError("https://bucket/secret")

    monkeypatch.setattr(obstore, "get_range_async", broken)
    with pytest.raises(Unavailable, match="GenericError"):
        await blobs.get_range("a", 0, 2)
    monkeypatch.setattr(obstore, "head_async", broken)
    with pytest.raises(Unavailable, match="GenericError"):
        await blobs.size("a")


def test_a_bucket_url_opens_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    opened = open_blobs("s3://bucket/prefix")._store
    assert isinstance(opened, S3Store)
    assert opened.prefix == "prefix"


@pytest.mark.parametrize("url", ["", "/a", "file://host/a", "file:a", "s3://", "ftp://a/b"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(StartupError, match=r"files\.url: file:///PATH or s3://BUCKET/PREFIX"):
        open_blobs(url)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be opened"):
        open_blobs((tmp_path / "file" / "blobs").as_uri())


async def test_nothing_is_left_of_the_folder_of_a_deleted_blob(folder: Path) -> None:
    blobs = open_blobs(folder.as_uri())
    for key in ("outputs/a/1-0.png", "outputs/a/1-1.png", "outputs/b/1-0.png"):
        await blobs.put(key, b"x", "image/png")
    await blobs.delete("outputs/a/1-0.png")
    assert await blobs.get("outputs/a/1-1.png") == b"x"
    await blobs.delete("outputs/a/1-1.png")
    assert [path.name for path in (folder / "outputs").iterdir()] == ["b"]
    await blobs.delete("outputs/b/1-0.png")
    assert not (folder / "outputs").exists()
    await blobs.put("outputs/b/1-0.png", b"again", "image/png")
    assert await blobs.get("outputs/b/1-0.png") == b"again"


async def test_a_folder_that_empties_while_others_write_to_it_loses_nothing(folder: Path) -> None:
    blobs = open_blobs(folder.as_uri())

    async def come_and_go(name: int) -> None:
        for turn in range(20):
            key = f"uploads/{name}-{turn}"
            await blobs.put(key, b"x", "image/png")
            assert await blobs.get(key) == b"x"
            await blobs.delete(key)

    await asyncio.gather(*(come_and_go(name) for name in range(8)))
