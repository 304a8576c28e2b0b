"""What the guarded client says of URLs that are none, and of names with an underscore."""

import asyncio

import pytest

from fluxserve.core.errors import InputUnreachable
from fluxserve.images.guard import GuardedClient, Limits
from tests.images.material import LOOPBACK, MovingName, refusal, reply, serving

BLANK = "the URL is malformed: it has a blank or a control character in it"
PORT = "the URL is malformed: a port is a number from 1 to 65535"
LONG = f"{'a' * 64}.example"
# What `get` is asked for is read anew at each hop, so a blank in a path is written out there.
MALFORMED = {
    "http://example.com/a b.png": BLANK,
    "http://example.com/a\nb.png": BLANK,
    "http://example.com:99999/": PORT,
    "http://example.com:0/": PORT,
    "http://example.com:http/": PORT,
    "http://xn--/a.png": "the URL is malformed: 'xn--' is no name of a host",
    "http://xn--a.example/": "the URL is malformed: 'xn--a.example' is no name of a host",
    f"http://{LONG}/": f"the URL is malformed: {LONG!r} is no name of a host",
    "http://a..b/": "the URL is malformed: 'a..b' is no name of a host",
    "http://a|b.example/": "the URL is malformed: 'a|b.example' is no name of a host",
    "http://8.8.2056/": "the URL is malformed: '8.8.2056' is no name of a host",
}


@pytest.mark.parametrize("url", MALFORMED)
async def test_a_malformed_url_is_not_called_a_private_address(url: str) -> None:
    guard = GuardedClient()
    with pytest.raises(InputUnreachable) as caught:
        guard.check(url)
    assert caught.value.message == MALFORMED[url]
    await guard.aclose()


@pytest.mark.parametrize("url", [url for url in MALFORMED if MALFORMED[url] != BLANK])
async def test_a_malformed_url_is_neither_fetched_nor_called(url: str) -> None:
    guard = GuardedClient()
    assert await refusal(guard, url) == MALFORMED[url]
    with pytest.raises(InputUnreachable) as caught:
        await guard.post(url, b"{}", {}, timeout_s=5)
    assert caught.value.message == MALFORMED[url]
    await guard.aclose()


async def test_a_redirect_to_a_host_that_is_none_is_not_blamed_on_the_url(
    guard: GuardedClient,
) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", "302 Found", location="http://xn--/a.png"))

    async with serving(answer) as site:
        assert await refusal(guard, site.url()) == "127.0.0.1 broke the connection off"


async def test_a_name_with_an_underscore_is_fetched() -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"picture"))

    async with serving(answer) as site:
        name = MovingName(site.port, ("127.0.0.1",))
        guard = GuardedClient(LOOPBACK, Limits(total_s=5.0), resolver=name)
        url = f"http://my_bucket.pictures_.test:{site.port}/a_b.png"
        guard.check(url)
        assert await guard.get(url) == b"picture"
        assert b"host: my_bucket.pictures_.test" in site.requests[0].lower()
        await guard.aclose()


async def test_what_a_name_with_an_underscore_leads_to_is_checked_like_any_other() -> None:
    async def secret(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"secret"))

    async with serving(secret) as private:
        guard = GuardedClient((), resolver=MovingName(private.port, ("127.0.0.1",)))
        url = f"http://my_bucket.test:{private.port}/"
        guard.check(url)
        message = await refusal(guard, url)
        assert message.startswith("my_bucket.test is not a public address")
        assert private.connections == 0
        await guard.aclose()
