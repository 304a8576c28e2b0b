"""Signed links: whole, in ranges, by condition, forged, expired; and known when they come back."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from fluxserve.app import House
from fluxserve.core.errors import NotFound
from fluxserve.dialects.delivery import own_blob
from tests.dialects.served import client_of, house_on, png

DATA = png(40, 30)
WEB = b"<html><script>alert(1)</script></html>"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_on(tmp_path) as house:
        yield house


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(house) as client:
        yield client


async def link(house: House, data: bytes = DATA, age_s: float = 0.0) -> str:
    """A link to stored bytes, made so many seconds ago."""
    ref = await house.blobs.put("outputs/test/out-0.png", data, "image/png")
    since = datetime.now(UTC) - timedelta(seconds=age_s)
    return house.services.links_on("http://flux.test", "/v1").blob(ref, "out-0.png", since)


async def test_a_link_gives_the_bytes_with_all_headers(
    house: House, client: httpx.AsyncClient
) -> None:
    url = await link(house)
    answer = await client.get(url)
    assert (answer.status_code, answer.content) == (200, DATA)
    head = await client.head(url)
    assert head.content == b""
    for found in (answer, head):
        assert found.headers["content-type"] == "image/png"
        assert found.headers["content-length"] == str(len(DATA))
        assert found.headers["accept-ranges"] == "bytes"
        assert found.headers["access-control-allow-origin"] == "*"
        assert found.headers["cache-control"] == "public, max-age=3600"
        assert found.headers["etag"] == answer.headers["etag"]
        assert found.headers["last-modified"].endswith(" GMT")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=10-", 10, None), ("bytes=-7", -7, None), ("bytes=5-5", 5, 6)],
)
async def test_a_range_is_cut_out(
    house: House, client: httpx.AsyncClient, asked: str, start: int, end: int | None
) -> None:
    answer = await client.get(await link(house), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, DATA[start:end])
    first = start % len(DATA)
    span = f"bytes {first}-{first + len(answer.content) - 1}/{len(DATA)}"
    assert answer.headers["content-range"] == span
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("asked", ["bytes=9-5", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "x"])
async def test_a_range_that_makes_no_sense_gives_everything(
    house: House, client: httpx.AsyncClient, asked: str
) -> None:
    answer = await client.get(await link(house), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, DATA)


@pytest.mark.parametrize("asked", ["bytes=99999-", "bytes=-0"])
async def test_a_range_beyond_the_end_is_a_416(
    house: House, client: httpx.AsyncClient, asked: str
) -> None:
    answer = await client.get(await link(house), headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


async def test_conditions_are_heard(house: House, client: httpx.AsyncClient) -> None:
    url = await link(house)
    first = await client.get(url)
    etag, made = first.headers["etag"], first.headers["last-modified"]

    async def status(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await client.get(url, headers=named)).status_code

    assert await status(If_None_Match=f'"x", W/{etag}') == 304
    assert await status(If_None_Match="*") == 304
    assert await status(If_None_Match='"x"', If_Modified_Since=made) == 200
    assert await status(If_Modified_Since=made) == 304
    assert await status(If_Modified_Since="Mon, 01 Jan 2001 00:00:00 GMT") == 200
    assert await status(If_Modified_Since="yesterday") == 200
    assert await status(Range="bytes=0-1", If_Range=etag) == 206
    assert await status(Range="bytes=0-1", If_Range=made) == 206
    assert await status(Range="bytes=0-1", If_Range='"other"') == 200


async def test_a_large_file_comes_whole_and_in_the_middle(
    house: House, client: httpx.AsyncClient
) -> None:
    large = DATA + bytes(range(256)) * 12_000
    url = await link(house, large)
    assert (await client.get(url)).content == large
    part = await client.get(url, headers={"Range": "bytes=1000000-2200000"})
    assert part.content == large[1_000_000:2_200_001]


async def test_forged_expired_and_lost_links_are_404(
    house: House, client: httpx.AsyncClient
) -> None:
    url = await link(house)
    token = urlsplit(url).path.split("/")[2]
    swapped = ("B" if token[0] != "B" else "C") + token[1:]
    for path in (f"/out/{swapped}/out-0.png", "/out/AAAA/x.png", "/out/%C3%A9/x.png"):
        answer = await client.get(path)
        assert answer.status_code == 404
        assert answer.headers["access-control-allow-origin"] == "*"
    old = await link(house, age_s=8 * 86400)
    assert (await client.get(old)).status_code == 404
    await house.blobs.delete("outputs/test/out-0.png")
    assert (await client.get(url)).status_code == 404


async def test_bytes_that_are_no_picture_are_never_shown_as_a_page(
    house: House, client: httpx.AsyncClient
) -> None:
    url = (await link(house, WEB)).replace("out-0.png", "page.html")
    answer = await client.get(url)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_page_of_another_origin_may_ask_for_ranges(
    house: House, client: httpx.AsyncClient
) -> None:
    headers = {"Origin": "https://a.example", "Access-Control-Request-Headers": "range"}
    answer = await client.options(await link(house), headers=headers)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == "range"


async def test_own_links_are_known_by_signature_on_any_host(house: House) -> None:
    url = await link(house)
    known = await own_blob(house.services, url.replace("flux.test", "other.example:8443"))
    assert known is not None
    assert known.key == "outputs/test/out-0.png"
    forged = url.replace("/out/", "/out/B")
    for foreign in (forged, "https://a.example/x.png", "http://[::1", "https://a/v1/files/x"):
        assert await own_blob(house.services, foreign) is None


async def test_a_dead_link_on_the_public_name_is_told_apart(tmp_path: Path) -> None:
    flags = {"public_url": "https://flux.example"}
    async with house_on(tmp_path, flags) as house:
        for path in ("/out/" + "A" * 40 + "/x.png", "/v1/files/" + "0" * 26):
            with pytest.raises(NotFound):
                await own_blob(house.services, "https://flux.example" + path)
            assert await own_blob(house.services, "https://other.example" + path) is None
