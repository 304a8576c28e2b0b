"""HTTP/1.1 to one origin: kept connections, one request at a time on each, whole answers, capped.

Made for what a channel needs, and for its price: a general client costs a millisecond of processor
time a request, this one a tenth (llhttp reads the answers). It follows no redirect, uses no proxy,
keeps no cookie, and never sends a request twice.
"""

import asyncio
import socket
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast
from urllib.parse import urlsplit

import httptools
import httpx

HEAD_MAX_BYTES = 64 * 1024  # of an answer's status line and headers
# A provider that closes idle connections as we send makes lost submissions: keep them short.
IDLE_S = 5.0
SMALL_BYTES = 64 * 1024  # a body up to this size is sent in one piece with its head
PORTS = {"http": 80, "https": 443}


class Unconnected(Exception):
    """No connection could be made: not a byte of the request was sent."""


class Broken(Exception):
    """The request was sent, in part at least, and there is no whole answer to it."""


class Overlong(Exception):
    """The answer is larger than allowed. The message continues "the answer is ..."."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, its content coding undone."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Origin:
    """Scheme, host and port, and the connections there that wait for work."""

    def __init__(
        self, url: str, connect_timeout_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        """`url`: of anything there; `tls`: instead of the public certificate authorities."""
        parts = urlsplit(url)
        self.scheme = parts.scheme
        self.host = parts.hostname or ""
        self.port = parts.port or PORTS.get(parts.scheme, 0)
        self._authority = parts.netloc.rpartition("@")[2]
        self._connect_timeout_s = connect_timeout_s
        self._given_tls = tls
        self._idle: list[_Line] = []

    def has(self, url: str) -> bool:
        """Whether a link leads here."""
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme, 0)
        except ValueError:
            return False
        return (parts.scheme, parts.hostname, port) == (self.scheme, self.host, self.port)

    async def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, cap: int
    ) -> Reply:
        """One request and its whole answer of at most `cap` bytes; limits of time are the caller's.

        `target`: path and query, quoted. Unconnected, Broken, Overlong.
        """
        line = await self._line()
        try:
            reply = await line.exchange(self._head(method, target, headers, body), body, cap)
        except BaseException:
            line.abort()  # what may still come on it belongs to this request
            raise
        if line.can_wait:
            self._keep(line)
        else:
            line.abort()
        return reply

    def close(self) -> None:
        for line in self._idle:
            line.abort()
        self._idle.clear()

    def _keep(self, line: "_Line") -> None:
        """For the next request; those that waited too long for one are given up."""
        oldest = line.idle_since - IDLE_S
        while self._idle and (self._idle[0].is_closed or self._idle[0].idle_since < oldest):
            self._idle.pop(0).abort()
        self._idle.append(line)

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append("accept-encoding: gzip, deflate")
        if body or method != "GET":
            lines.append(f"content-length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def _line(self) -> "_Line":
        oldest = asyncio.get_running_loop().time() - IDLE_S
        while self._idle:
            line = self._idle.pop()
            if not line.is_closed and line.idle_since >= oldest:
                return line
            line.abort()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._connect()
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            raise Unconnected(str(error) or type(error).__name__) from error

    async def _connect(self) -> "_Line":
        """To the first address that answers, those of IPv4 before those of IPv6."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        share_s = self._connect_timeout_s / max(1, len(found))
        trouble: Exception = OSError("the name has no address")
        for family, kind, protocol, _, address in found:
            wire = socket.socket(family, kind, protocol)
            try:
                wire.setblocking(False)
                async with asyncio.timeout(share_s):
                    await loop.sock_connect(wire, address)
                name = self.host if self._tls is not None else None
                _, line = await loop.create_connection(
                    _Line, sock=wire, ssl=self._tls, server_hostname=name
                )
                return line
            except (OSError, TimeoutError) as error:
                trouble = error
                wire.close()
            except BaseException:
                wire.close()
                raise
        raise trouble

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        if self.scheme != "https":
            return None
        return self._given_tls or httpx.create_ssl_context(trust_env=False)


class _Line(asyncio.Protocol):
    """One connection; `exchange` is never called while another one runs."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._cap = 0
        self._is_kept = False
        self.is_closed = False
        self.idle_since = 0.0  # of the loop's clock
        self._forget()

    def _forget(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._head_bytes = 0
        self._has_head = False
        self._is_whole = False

    @property
    def can_wait(self) -> bool:
        """Whether another request may be sent on it."""
        assert self._transport is not None
        is_sent = not self._transport.get_write_buffer_size()
        return self._is_kept and is_sent and not self.is_closed

    def abort(self) -> None:
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, head: bytes, body: bytes, cap: int) -> Reply:
        assert self._transport is not None
        if self.is_closed:
            raise Broken("the connection was closed")
        loop = asyncio.get_running_loop()
        self._forget()
        self._cap = cap
        self._waiter = loop.create_future()
        if len(body) <= SMALL_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        try:
            reply = await self._waiter
        finally:
            self._waiter = None
        self.idle_since = loop.time()
        plain = _decoded(reply.body, reply.headers.get("content-encoding", ""), cap)
        return reply if plain is reply.body else Reply(reply.status, reply.headers, plain)

    # --- the loop calls these --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.abort()  # nobody asked: what follows could be taken for the next answer
            return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(Broken(f"no HTTP answer: {error}"))
        if len(self._body) > self._cap:
            self._fail(Overlong(f"larger than {self._cap} bytes"))
        elif not self._has_head and self._head_bytes > HEAD_MAX_BYTES:
            self._fail(Overlong(f"larger than {HEAD_MAX_BYTES} bytes in its headers"))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        # Without a length the end of the connection is the end of the body.
        coding = self._headers.get("transfer-encoding", "").lower()
        has_length = "content-length" in self._headers or "chunked" in coding
        if error is None and self._has_head and not has_length:
            self._finish()
        else:
            self._fail(Broken("the connection was closed before the answer was whole"))

    # --- the parser calls these; a second answer to one request is not listened to ----------------

    def on_message_begin(self) -> None:
        if self._is_whole:
            self._is_kept = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_whole:
            key, said = name.decode("latin-1").lower(), value.decode("latin-1")
            known = self._headers.get(key)
            self._headers[key] = said if known is None else f"{known}, {said}"

    def on_headers_complete(self) -> None:
        if not self._is_whole:
            self._has_head = True
            self._status = self._parser.get_status_code()
            self._is_kept = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        if not self._is_whole:
            self._body += data

    def on_message_complete(self) -> None:
        if self._status < 200:  # an interim answer: the real one follows
            self._headers, self._has_head = {}, False
        elif not self._is_whole:
            self._finish()

    def _finish(self) -> None:
        self._is_whole = True
        if self._waiter is None or self._waiter.done():
            return
        if len(self._body) > self._cap:
            self._fail(Overlong(f"larger than {self._cap} bytes"))
        else:
            self._waiter.set_result(Reply(self._status, self._headers, bytes(self._body)))

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
            self.abort()


def _decoded(body: bytes, coding: str, cap: int) -> bytes:
    """The body without its content coding, at most `cap` bytes; Broken, Overlong."""
    match coding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        case "deflate":
            # Meant with zlib's header; some servers send it without.
            is_bare = not body or body[0] & 0x0F != 8
            inflater = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS)
        case _:
            raise Broken(f"an answer in the coding {coding[:20]!r}, which nobody asked for")
    try:
        plain = inflater.decompress(body, cap + 1)
    except zlib.error as error:
        raise Broken("an answer that cannot be inflated") from error
    if len(plain) > cap:
        raise Overlong(f"larger than {cap} bytes")
    if not inflater.eof:
        raise Broken("an answer whose compressed body is cut off")
    return plain
