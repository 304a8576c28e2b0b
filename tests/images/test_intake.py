"""Pictures on their way in: inline, by URL, by our own links."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from fluxserve.core.errors import InputUnreachable, InvalidRequest, NotFound, TooLarge
from fluxserve.core.ports import BlobStore, Intake
from fluxserve.core.request import BlobRef, ImageInput
from fluxserve.images.guard import GuardedClient, Limits
from fluxserve.images.intake import ImageIntake
from fluxserve.storage.blobs import open_blobs
from tests.images.material import exif, file_of, quadrants, reply, serving

OWN = "http://our.house/files/"


class House:
    """An intake with its surroundings."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 2, 23, 59, tzinfo=UTC)
        self.blobs = open_blobs("memory://")
        self.links: dict[str, BlobRef] = {}
        self.guard = GuardedClient(["127.0.0.1/32"], Limits(total_s=5.0, size_max_bytes=100_000))
        store: BlobStore = self.blobs
        self.intake = ImageIntake(
            store,
            self.guard,
            self.own,
            pixels_max=1_000_000,
            size_max_bytes=200_000,
            clock=lambda: self.at,
        )
        port: Intake = self.intake
        assert port is self.intake

    async def keys(self) -> list[str]:
        """The keys of everything stored."""
        later = datetime.now(UTC) + timedelta(hours=1)
        return [key async for group in self.blobs.written_before(later) for key in group]

    async def own(self, url: str) -> BlobRef | None:
        if not url.startswith(OWN):
            return None
        if url not in self.links:
            raise NotFound("no such file")
        return self.links[url]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    await house.guard.aclose()


async def test_inline_bytes_are_stored_once_a_day_under_their_hash(house: House) -> None:
    data = file_of(quadrants(), "PNG")
    first = await house.intake.take(data, "image")
    second = await house.intake.take_text(base64.b64encode(data).decode(), "image")
    assert first == second
    assert first.blob is not None
    sha256 = hashlib.sha256(data).hexdigest()
    assert first.blob.key == f"inputs/2026-01-02/{sha256}.png"
    assert first.blob.sha256 == sha256
    assert (first.blob.mime, first.blob.size_bytes) == ("image/png", len(data))
    assert await house.keys() == [first.blob.key]
    house.at += timedelta(minutes=1)
    third = await house.intake.take(data, "image")
    assert third.blob is not None
    assert third.blob.key == f"inputs/2026-01-03/{sha256}.png"
    assert sorted(await house.keys()) == [first.blob.key, third.blob.key]


async def test_width_and_height_are_upright(house: House) -> None:
    taken = await house.intake.take(file_of(quadrants(), "JPEG", exif=exif(6)), "image")
    assert taken.blob is not None
    assert (taken.blob.width, taken.blob.height) == (32, 48)
    loaded = await house.intake.load(taken)
    assert (loaded.width, loaded.height, loaded.mime) == (32, 48, "image/jpeg")
    assert loaded.data == await house.blobs.get(taken.blob.key)


async def test_a_declared_type_is_not_believed(house: House) -> None:
    text = base64.b64encode(file_of(quadrants(), "WEBP")).decode()
    taken = await house.intake.take_text(f"data:image/png;base64,{text}", "image")
    assert taken.blob is not None
    assert taken.blob.mime == "image/webp"


BAD = {
    "not an image": (base64.b64encode(b"hello").decode(), "mask: the file is something else"),
    "not base64": ("hello, world", "mask: an http(s) URL, a data URI or base64 is needed"),
    "empty": ("", "mask: an image is needed, but the text is empty"),
    "too many pixels": (
        base64.b64encode(file_of(quadrants(2000, 1000), "PNG")).decode(),
        "mask: at most 1 megapixels, not 2000 x 1000 (2.0)",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_inline_input_is_refused_naming_the_field(house: House, name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(InvalidRequest) as caught:
        await house.intake.take_text(text, "mask")
    assert caught.value.message.startswith(message)
    assert caught.value.field == "mask"
    assert await house.keys() == []


async def test_too_many_bytes_are_refused_naming_the_field(house: House) -> None:
    with pytest.raises(TooLarge, match=r"image: at most 0\.2 MB, not 0\.3 MB") as caught:
        await house.intake.take(bytes(300_000), "image")
    assert caught.value.field == "image"
    with pytest.raises(TooLarge):
        await house.intake.take_text("A" * 400_000, "image")


async def test_a_url_is_fetched_and_checked_when_the_job_runs(house: House) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(file_of(quadrants(), "JPEG", exif=exif(8)), content_type="text/plain"))

    async with serving(answer) as site:
        image = await house.intake.load(ImageInput(url=site.url("/photo.png")))
    assert (image.mime, image.width, image.height) == ("image/jpeg", 32, 48)
    assert await house.keys() == []


async def test_a_url_without_a_picture_behind_it_is_told_by_its_host(house: House) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"<!doctype html>login", content_type="image/png"))

    async with serving(answer) as site:
        with pytest.raises(InvalidRequest) as caught:
            await house.intake.fetch(site.url("/p?token=1"))
    assert caught.value.message == (
        "image from 127.0.0.1: the file is a web page, not a JPEG, PNG, WebP, GIF or BMP picture"
    )


async def test_a_data_uri_is_never_fetched(house: House) -> None:
    text = base64.b64encode(file_of(quadrants(), "GIF")).decode()
    image = await house.intake.fetch(f"data:image/gif;base64,{text}")
    assert (image.mime, image.width, image.height) == ("image/png", 48, 32)


async def test_our_own_links_are_resolved_inside(house: House) -> None:
    taken = await house.intake.take(file_of(quadrants(), "PNG"), "image")
    assert taken.blob is not None
    house.links[OWN + "1"] = taken.blob
    image = await house.intake.fetch(OWN + "1")
    assert image.data == await house.blobs.get(taken.blob.key)


async def test_an_uploaded_file_of_ours_is_checked_like_any_other(house: House) -> None:
    turned = await house.blobs.put(
        "files/1", file_of(quadrants(), "JPEG", exif=exif(6)), "image/png"
    )
    house.links[OWN + "1"] = turned
    image = await house.intake.fetch(OWN + "1")
    assert (image.mime, image.width, image.height) == ("image/jpeg", 32, 48)
    house.links[OWN + "2"] = await house.blobs.put("files/2", b"a poem", "image/png")
    with pytest.raises(InvalidRequest, match="the file is something else"):
        await house.intake.fetch(OWN + "2")


async def test_a_dead_link_of_ours_is_unreachable(house: House) -> None:
    with pytest.raises(InputUnreachable, match="no longer there"):
        await house.intake.fetch(OWN + "gone")
    house.links[OWN + "1"] = BlobRef(key="gone", mime="image/png", size_bytes=1)
    with pytest.raises(InputUnreachable, match="no longer there"):
        await house.intake.fetch(OWN + "1")


async def test_a_private_url_is_refused_at_creation_and_when_the_job_runs(house: House) -> None:
    url = "http://[::ffff:169.254.169.254]/latest"
    with pytest.raises(InputUnreachable) as caught:
        await house.intake.check_url(url, "input_image")
    assert caught.value.field == "input_image"
    assert caught.value.message.startswith("input_image: ::ffff:169.254.169.254 is not a public")
    with pytest.raises(InputUnreachable):
        await house.intake.fetch(url)
    await house.intake.check_url("https://example.com/a.png", "input_image")


async def test_our_own_links_pass_at_creation_wherever_we_listen(house: House) -> None:
    house.links[OWN + "1"] = await house.blobs.put("files/1", b"some bytes", "image/png")
    await house.intake.check_url(OWN + "1", "image")
    with pytest.raises(InputUnreachable, match="image: a file of this server") as caught:
        await house.intake.check_url(OWN + "gone", "image")
    assert caught.value.field == "image"
