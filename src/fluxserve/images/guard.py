"""The only way out to an address that a caller named: public hosts, or networks opened by name.

    check(url)  what the text alone tells: scheme, form, name, literal address
    get(url)    follow redirects, each hop checked; bounded in time and bytes
    save(url)   the same, piece by piece instead of whole
    post(url)   no redirects; the answer's body is not read

A name is resolved once, every answer is checked, and the socket goes to the checked address, so
a name that changes its mind between check and connection gains nothing. That part is ssrfguard's.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit

import httpx
from ssrfguard import BlockedAddressError, Observer, Policy, Resolver, SSRFGuardError, Target
from ssrfguard.httpx import AsyncClient

from fluxserve.core.errors import InputUnreachable, StartupError, TooLarge

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
T = TypeVar("T")

REDIRECTS_MAX = 5
CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 100
# UnicodeError: a host in punycode (xn--) that is none, told when the host is first read.
_TROUBLE = (SSRFGuardError, httpx.HTTPError, httpx.InvalidURL, UnicodeError)
# Any port: self-hosted services live on odd ones, and the address is what is guarded.
_PORTS = frozenset(range(1, 65536))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one fetch may cost."""

    total_s: float = 30.0  # from the first look-up to the last byte, redirects included
    connect_s: float = CONNECT_TIMEOUT_S
    size_max_bytes: int = 32 * 1024 * 1024
    redirects_max: int = REDIRECTS_MAX


class _Rules(Policy):
    """The library's rules, and names with an underscore, as buckets and containers have them.

    Only the text is judged more mildly: no address has an underscore, and what such a name leads
    to is checked before the connection, like any other.
    """

    def check_url(self, url: str, *, observer: Observer | None = None) -> Target:
        try:
            parts = urlsplit(url)
        except ValueError:  # the library says so
            return super().check_url(url, observer=observer)
        if "_" not in parts.netloc:
            return super().check_url(url, observer=observer)
        plain = url.replace(parts.netloc, parts.netloc.replace("_", "z"), 1)
        return replace(super().check_url(plain, observer=observer), host=parts.hostname or "")


class GuardedClient:
    """An HTTP client for addresses that callers name. One per process; close it with `aclose`."""

    def __init__(
        self,
        allow: Sequence[str] = (),
        limits: Limits | None = None,
        *,
        user_agent: str = "fluxserve",
        verify: ssl.SSLContext | bool = True,
        resolver: Resolver | None = None,
    ) -> None:
        """`allow` lists private networks (CIDR) that may be reached; StartupError if one is none.

        `resolver` stands in for socket.getaddrinfo in tests; whatever it answers is checked.
        """
        self._limits = limits or Limits()
        self._networks = _networks(allow)
        self._lookup = resolver or socket.getaddrinfo
        try:
            self._policy = _Rules(
                allowed_networks=self._networks,
                allowed_ports=_PORTS,
                # Of a name with public and private addresses, the public ones may be used.
                on_partial_block="drop",
            )
        except ValueError as error:
            raise StartupError(f"fetch.allow: {error}") from error
        self._client = AsyncClient(
            policy=self._policy,
            resolver=resolver,
            trust_env=False,  # no proxy, no netrc: neither may see or answer for a caller's URL
            verify=verify,
            follow_redirects=False,  # by hand in `get`: httpx would read each hop's whole body
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx.Timeout(self._limits.total_s, connect=self._limits.connect_s),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=20),
            headers={"user-agent": user_agent, "accept-encoding": "identity"},
        )
        self._abandoned: set[asyncio.Task[object]] = set()
        # httpx logs the whole URL of every request, and a caller's URL may carry a secret.
        logging.getLogger("httpx").setLevel(logging.WARNING)

    async def aclose(self) -> None:
        await self._client.aclose()

    def check(self, url: str) -> None:
        """Raise InputUnreachable for a URL that can be refused without a look-up."""
        try:
            self._policy.check_url(_plainly(url))
            self._policy.check_url(url)  # an odd spelling of a public address is none either
            _read_host(url)
        except _TROUBLE as error:
            raise _refused(url, error) from error

    async def is_inside(self, url: str) -> bool:
        """Whether every address of the URL's host lies in the networks of `allow`."""
        look_up = asyncio.to_thread(self._lookup, host_of(url), 0, 0, socket.SOCK_STREAM, 0, 0)
        try:
            answers = await asyncio.wait_for(look_up, self._limits.connect_s)
        except (OSError, TimeoutError, UnicodeError):
            return False
        addresses = {ipaddress.ip_address(str(answer[4][0])) for answer in answers}
        return bool(addresses) and all(
            any(address in network for network in self._networks) for address in addresses
        )

    async def get(self, url: str, *, accept: str = "*/*") -> bytes:
        """The body behind `url`.

        Raises InputUnreachable (refused, unreachable, too slow, not 200) or TooLarge. Messages
        name the host and nothing else of the URL.
        """
        chunks: list[bytes] = []

        async def take(chunk: bytes) -> None:
            chunks.append(chunk)

        await self.save(url, take, accept=accept)
        return b"".join(chunks)

    async def save(
        self, url: str, take: Callable[[bytes], Awaitable[None]], *, accept: str = "*/*"
    ) -> None:
        """Hand the body behind `url` to `take`, in pieces of a few kilobytes as they come.

        Raises what `get` raises, and what `take` raises; pieces may have come before.
        """
        await self._within(self._limits.total_s, url, self._get(url, accept, take))

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float
    ) -> int:
        """Send `body`; return the status. InputUnreachable when no answer came.

        A redirect is an answer like any other. The answer's body is not read.
        """
        return await self._within(timeout_s, url, self._post(url, body, headers))

    async def _within(self, limit_s: float, url: str, work: Coroutine[object, object, T]) -> T:
        """The result of `work`, or InputUnreachable after `limit_s`.

        The work is abandoned rather than awaited then: a name look-up cannot be interrupted.
        """
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=limit_s)
        finally:
            if not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._forget)
        if not done:
            raise InputUnreachable(f"{host_of(url)} did not answer within {limit_s:g} s")
        return task.result()

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for it any more

    async def _get(self, url: str, accept: str, take: Callable[[bytes], Awaitable[None]]) -> None:
        hop = url
        try:
            request = self._client.build_request("GET", url, headers={"accept": accept})
            for _ in range(self._limits.redirects_max + 1):
                response = await self._client.send(request, stream=True)
                try:
                    if response.next_request is None:
                        await self._body(response, take)
                        return
                    request = response.next_request
                    hop = str(request.url)
                finally:
                    await response.aclose()
        except _TROUBLE as error:
            raise _refused(hop, error) from error
        count = self._limits.redirects_max
        raise InputUnreachable(f"{host_of(url)} redirects more than {count} times")

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        try:
            request = self._client.build_request("POST", url, content=body, headers=dict(headers))
            response = await self._client.send(request, stream=True)
            await response.aclose()
        except _TROUBLE as error:
            raise _refused(url, error) from error
        return response.status_code

    async def _body(
        self, response: httpx.Response, take: Callable[[bytes], Awaitable[None]]
    ) -> None:
        host = response.url.host
        if response.status_code != 200:
            raise InputUnreachable(f"{host} answered {response.status_code}, not 200")
        cap = self._limits.size_max_bytes
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > cap:
            raise _too_large(host, cap)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        chunks = _capped(response.aiter_raw(), host, cap)
        if encoding not in ("", "identity"):
            if encoding not in ("gzip", "x-gzip", "deflate"):
                raise InputUnreachable(f"{host} answered in the encoding {encoding[:20]!r}")
            # Both are capped: a little may grow to much, and much may come that grows to nothing.
            chunks = _capped(_inflated(chunks, host), host, cap)
        async for chunk in chunks:
            await take(chunk)


async def _capped(chunks: AsyncIterator[bytes], host: str, cap: int) -> AsyncIterator[bytes]:
    """The same bytes; TooLarge as soon as they are more than `cap`."""
    size_bytes = 0
    async for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > cap:
            raise _too_large(host, cap)
        yield chunk


async def _inflated(chunks: AsyncIterator[bytes], host: str) -> AsyncIterator[bytes]:
    """Gzip and deflate undone in small steps; one stream, whole, with nothing after it."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # reads a gzip or a zlib header
    async for chunk in chunks:
        try:
            while chunk:
                yield inflater.decompress(chunk, _INFLATE_STEP)
                chunk = inflater.unconsumed_tail
        except zlib.error as error:
            raise InputUnreachable(f"{host} answered with broken gzip") from error
        if inflater.unused_data:
            raise InputUnreachable(f"{host} answered with gzip and something after its end")
    if not inflater.eof:
        raise InputUnreachable(f"{host} answered with gzip that is cut off")


_INFLATE_STEP = 1 << 20  # bytes


def _plainly(url: str) -> str:
    """The URL with an IPv4 address in one of its odd spellings (0x7f000001, 0177.1) in dots."""
    host = host_of(url)
    try:
        dotted = socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return url
    return url if dotted == host else f"{urlsplit(url).scheme}://{dotted}/"


def host_of(url: str) -> str:
    """The host that a URL names, for messages: nothing else of a URL may be repeated."""
    try:
        return (urlsplit(url).hostname or "the URL")[:100]
    except ValueError:
        return "the URL"


def _networks(allow: Sequence[str]) -> tuple[Network, ...]:
    networks: list[Network] = []
    for text in allow:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            message = f"fetch.allow: networks like 10.0.0.0/8 are needed, not {text!r} ({error})"
            raise StartupError(message) from error
    return tuple(networks)


def _too_large(host: str, cap: int) -> TooLarge:
    return TooLarge(f"{host} sent more than {cap / 1e6:g} MB, the most that is fetched")


def _refused(url: str, error: Exception) -> InputUnreachable:
    """An error of the layers below in words for the caller; `url` is the hop that failed."""
    host = host_of(url)
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return InputUnreachable(f"{host} cannot be reached")
        case httpx.TimeoutException():
            return InputUnreachable(f"{host} did not answer in time")
        case SSRFGuardError() | httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return InputUnreachable(_why_refused(url, error))
        case UnicodeError() if not _is_readable(url):
            return InputUnreachable(_why_refused(url, error))
        case _:
            return InputUnreachable(f"{host} broke the connection off")


def _read_host(url: str) -> str:
    """The host as the client reads it; UnicodeError or httpx.InvalidURL where it is none."""
    return httpx.URL(url).host


def _is_readable(url: str) -> bool:
    try:
        _read_host(url)
    except (UnicodeError, httpx.InvalidURL):
        return False
    return True


def _why_refused(url: str, error: Exception) -> str:
    try:
        parts = urlsplit(url)
        host, has_user = parts.hostname, "@" in parts.netloc
    except ValueError:
        return "the URL is malformed"
    if parts.scheme.lower() not in ("http", "https"):
        return "only http and https URLs are fetched"
    if not host:
        return "the URL names no host"
    if has_user:
        return f"a URL with a user name or password is not fetched ({host_of(url)})"
    if any(isinstance(one, BlockedAddressError) for one in (error, error.__cause__)):
        return (
            f"{host_of(url)} is not a public address and is not fetched"
            " (the setting fetch.allow opens private networks)"
        )
    return f"the URL is malformed: {_flaw(url)}"


def _flaw(url: str) -> str:
    if any(character <= " " or character == "\x7f" for character in url):
        return "it has a blank or a control character in it"
    try:
        is_port = urlsplit(url).port != 0
    except ValueError:
        is_port = False
    if not is_port:
        return "a port is a number from 1 to 65535"
    return f"{host_of(url)!r} is no name of a host"
