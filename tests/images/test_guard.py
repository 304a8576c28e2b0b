"""What the guarded client refuses, and how it ends what does not end by itself."""

import asyncio
import socket
import ssl

import pytest
import trustme

from fluxserve.core.errors import InputUnreachable, StartupError
from fluxserve.images.guard import GuardedClient, Limits
from tests.images.material import (
    LOOPBACK,
    PRIVATE,
    Answers,
    MovingName,
    RawServer,
    forever,
    refusal,
    reply,
    serving,
)


async def test_a_public_answer_is_fetched(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"picture"))

    async with serving(answer) as site:
        assert await guard.get(site.url("/a.png?x=1")) == b"picture"
        assert site.requests[0].startswith(b"GET /a.png?x=1 HTTP/1.1\r\n")


# Every one of these leads, on some system or other, to this machine or its neighbours.
DISGUISES = [
    "http://127.0.0.1{port}/",
    "http://127.0.0.2{port}/",
    "http://localhost{port}/",
    "http://localhost.{port}/",
    "http://LOCALHOST{port}/",
    "http://127.0.0.1.{port}/",
    "http://127.1{port}/",
    "http://127.0.1{port}/",
    "http://2130706433{port}/",
    "http://0x7f000001{port}/",
    "http://0x7f.0.0.1{port}/",
    "http://0x7f.1{port}/",
    "http://017700000001{port}/",
    "http://0177.0.0.1{port}/",
    "http://0{port}/",
    "http://0.0.0.0{port}/",
    "http://[::]{port}/",
    "http://[::1]{port}/",
    "http://[0:0:0:0:0:0:0:1]{port}/",
    "http://[::ffff:127.0.0.1]{port}/",
    "http://[::ffff:7f00:1]{port}/",
    "http://[::127.0.0.1]{port}/",
    "http://[64:ff9b::127.0.0.1]{port}/",
    "http://[64:ff9b::a9fe:a9fe]{port}/",
    "http://[64:ff9b:1::7f00:1]{port}/",
    "http://[2002:7f00:1::]{port}/",
    "http://[2002:a9fe:a9fe::1]{port}/",
    "http://[2001:0:7f00:1::]{port}/",
    "http://[fe80::1]{port}/",
    "http://[fe80::1%25eth0]{port}/",
    "http://[fc00::1]{port}/",
    "http://[fd00:ec2::254]{port}/",
    "http://[fec0::1]{port}/",
    "http://[ff02::1]{port}/",
    "http://10.0.0.1{port}/",
    "http://172.16.0.1{port}/",
    "http://192.168.1.1{port}/",
    "http://100.64.0.1{port}/",
    "http://100.100.100.200{port}/",
    "http://169.254.169.254{port}/latest/meta-data/",
    "http://169.254.0.1{port}/",
    "http://192.0.0.192{port}/",
    "http://198.18.0.1{port}/",
    "http://224.0.0.1{port}/",
    "http://255.255.255.255{port}/",
    "http://①②⑦.⓪.⓪.①{port}/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ{port}/",
    "http://127。0。0。1{port}/",
    "http://127.0.0.1%00.example.com{port}/",
    "http://example.com@127.0.0.1{port}/",
    "http://example.com:80@127.0.0.1{port}/",
    "http://127.0.0.1\\@example.com{port}/",
    "http://example.com#@127.0.0.1{port}/",
    "http:///127.0.0.1{port}/",
    "http://{port}/",
    "http://a_b@127.0.0.1{port}/",
    "http://[::1_]{port}/",
    "http://[_::1]{port}/",
    "http://127.0.0.1\t_{port}/",
]


@pytest.mark.parametrize("disguise", DISGUISES)
async def test_no_spelling_of_a_private_address_is_connected_to(disguise: str) -> None:
    def system(host: str, *rest: object) -> Answers:
        """The system's resolver, for everything that is not the decoy."""
        assert "example" not in host
        # Some systems know localhost only without the dot.
        name = "localhost" if host == "localhost." else host
        return socket.getaddrinfo(name, *rest)  # type: ignore[arg-type,return-value]

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"secret"))

    guard = GuardedClient((), Limits(total_s=5.0), resolver=system)
    async with serving(answer, "0.0.0.0") as site:
        url = disguise.format(port=f":{site.port}")
        if "#@" in url:  # that is example.com with a fragment: nothing private about it
            guard.check(url)
        else:
            message = await refusal(guard, url)
            assert any(
                word in message
                for word in ("not a public address", "user name", "names no host", "malformed")
            ), message
        assert site.connections == 0
    await guard.aclose()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("file:///etc/passwd", "only http and https URLs are fetched"),
        ("ftp://example.com/a", "only http and https URLs are fetched"),
        ("gopher://example.com/a", "only http and https URLs are fetched"),
        ("unix:///run/docker.sock", "only http and https URLs are fetched"),
        ("//example.com/a.png", "only http and https URLs are fetched"),
        ("a.png", "only http and https URLs are fetched"),
        ("http://user:pw@example.com/", "a URL with a user name or password is not fetched (exam"),
        ("http://[::1/", "the URL is malformed"),
        ("http://exa mple.com/", "the URL is malformed: it has a blank or a control character"),
        ("https://169.254.169.254/", "169.254.169.254 is not a public address and is not fetched"),
    ],
)
async def test_a_bad_url_is_refused_by_its_text_alone(url: str, text: str) -> None:
    guard = GuardedClient()
    with pytest.raises(InputUnreachable) as caught:
        guard.check(url)
    assert caught.value.message.startswith(text)
    assert await refusal(guard, url) == caught.value.message
    await guard.aclose()


def answers(*addresses: str) -> Answers:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]


async def test_a_name_that_moves_after_the_check_gains_nothing() -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"public"))

    async def secret(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"secret"))

    async with serving(answer) as public, serving(secret, PRIVATE) as private:
        name = MovingName(public.port, ("127.0.0.1",), (PRIVATE,))
        guard = GuardedClient(LOOPBACK, Limits(total_s=5.0), resolver=name)
        assert await guard.get(f"http://rebind.test:{public.port}/") == b"public"
        assert name.lookups == 1  # checked and connected by one and the same answer
        message = await refusal(guard, f"http://rebind.test:{private.port}/")
        assert message.startswith("rebind.test is not a public address")
        assert private.connections == 0
        await guard.aclose()


async def test_of_a_mixed_answer_only_the_open_addresses_are_used() -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"public"))

    async with serving(answer) as public:
        name = MovingName(public.port, (PRIVATE, "127.0.0.1"))
        guard = GuardedClient(LOOPBACK, Limits(total_s=5.0), resolver=name)
        assert await guard.get(f"http://mixed.test:{public.port}/") == b"public"
        await guard.aclose()


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 Nothing", "206 Part"])
async def test_only_200_is_an_answer(guard: GuardedClient, status: str) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", status))

    async with serving(answer) as site:
        message = await refusal(guard, site.url())
    assert message == f"127.0.0.1 answered {status[:3]}, not 200"


async def test_nobody_there_is_told_as_unreachable(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b""))

    async with serving(answer) as site:
        pass
    assert await refusal(guard, site.url()) == "127.0.0.1 cannot be reached"


async def test_an_unknown_name_is_told_as_unreachable() -> None:
    def unknown(*_: object) -> Answers:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    guard = GuardedClient((), resolver=unknown)
    assert await refusal(guard, "http://nowhere.test/a") == "nowhere.test cannot be reached"
    assert not await guard.is_inside("http://nowhere.test/a")
    await guard.aclose()


async def test_no_cookie_and_no_credential_is_ever_sent(
    guard: GuardedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.9:1")

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"x", set_cookie="session=1; Path=/"))

    async with serving(answer) as site:
        await guard.get(site.url())
        await guard.get(site.url())
    for head in site.requests:
        assert b"cookie" not in head.lower()
        assert b"authorization" not in head.lower()


async def test_post_sends_the_body_and_follows_no_redirect(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", "302 Found", location="/elsewhere"))

    async with serving(answer) as site:
        status = await guard.post(site.url("/hook?a=1"), b"{}", {"x-sign": "1"}, timeout_s=5)
    assert status == 302
    (head,) = site.requests
    assert head.startswith(b"POST /hook?a=1 ")
    assert b"x-sign: 1" in head.lower()


async def test_post_is_bound_by_the_same_address_rules(guard: GuardedClient) -> None:
    with pytest.raises(InputUnreachable, match="not a public address"):
        await guard.post(f"http://{PRIVATE}/", b"{}", {}, timeout_s=5)


async def test_post_does_not_wait_for_the_answers_body(guard: GuardedClient) -> None:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        await forever(writer, bytes(1000), 0.01)

    async with serving(answer) as site:
        assert await guard.post(site.url(), b"{}", {}, timeout_s=5) == 200


async def test_inside_means_that_every_address_is_in_an_open_network() -> None:
    def names(host: str, *_: object) -> Answers:
        known = {"in.test": ["127.0.0.1"], "mixed.test": ["127.0.0.1", "8.8.8.8"]}
        return answers(*known.get(host, ["8.8.8.8"]))

    guard = GuardedClient(LOOPBACK, resolver=names)
    assert await guard.is_inside("http://in.test/")
    assert not await guard.is_inside("http://mixed.test/")
    assert not await guard.is_inside("http://out.test/")
    await guard.aclose()


async def test_a_name_that_cannot_be_looked_up_is_not_inside() -> None:
    guard = GuardedClient(LOOPBACK)
    assert not await guard.is_inside("http://a..b/")
    await guard.aclose()


@pytest.mark.parametrize("network", ["10.0.0.0/99", "example.com", "10.0.0.1/8", "::/96"])
def test_a_network_that_is_none_stops_the_start(network: str) -> None:
    with pytest.raises(StartupError, match=r"fetch\.allow"):
        GuardedClient([network])


async def test_https_is_checked_against_the_name_and_reaches_the_checked_address() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("pictures.test").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"over tls"))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    guard = GuardedClient(
        LOOPBACK,
        Limits(total_s=5.0),
        verify=client_context,
        resolver=MovingName(port, ("127.0.0.1",)),
    )
    async with server:
        assert await guard.get(f"https://pictures.test:{port}/") == b"over tls"
        message = await refusal(guard, f"https://other.test:{port}/")
        assert message == "other.test cannot be reached"
    await guard.aclose()


def test_a_raw_server_names_itself() -> None:
    assert RawServer(host="127.0.0.1", port=7).url("/a") == "http://127.0.0.1:7/a"
