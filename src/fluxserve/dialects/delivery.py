"""Hands stored files to whoever holds a signed link, and takes pictures in, such links included.

GET, HEAD /out/{token}/{name}   the bytes: no key, ranges, conditions, any origin

The name is what a client may save the file as; the type is read from the bytes. An input picture
is a link of ours, another URL, or the bytes themselves.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fluxserve.core.access import Caller
from fluxserve.core.errors import InputUnreachable, InvalidRequest, NotFound
from fluxserve.core.ids import parse_id
from fluxserve.core.request import JSON, BlobRef, ImageInput
from fluxserve.dialects.base import FILE_PATH as FILE_PATH
from fluxserve.dialects.base import Services
from fluxserve.dialects.links import SIGNATURE_BYTES
from fluxserve.dialects.wire import Answer

CHUNK_BYTES = 1024 * 1024
CACHE_MAX_S = 3600
CONDITIONS = frozenset({"range", "if-range", "if-none-match", "if-modified-since"})
URL_MAX = 8192  # characters of an input picture's
HEAD_BYTES = 16  # enough to tell the four formats apart
# Under any mount: some dialects hand out links that stay under the caller's.
OUT_PATH = re.compile(r"(?:/[A-Za-z0-9_-]{1,64}){0,4}/out/([A-Za-z0-9_-]{16,1000})/[^/]{1,255}")
ANY_ORIGIN = {"Access-Control-Allow-Origin": "*"}


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes start..end (exclusive) of a file."""

    start: int
    end: int


def delivery_routes(services: Services) -> list[Route]:
    """The routes of signed links; no dialect owns them."""

    async def deliver(request: Request) -> Response:
        token = request.path_params["token"]
        key = services.signer.read(token, services.clock())
        if key is None:
            return _gone()
        try:
            return await _file(services, request, key, token)
        except NotFound:
            return _gone()

    async def preflight(request: Request) -> Response:
        allowed = {"Access-Control-Allow-Methods": "GET, HEAD", "Access-Control-Max-Age": "86400"}
        asked = request.headers.get("access-control-request-headers", "Range")
        return Response(
            status_code=204,
            headers={**ANY_ORIGIN, **allowed, "Access-Control-Allow-Headers": asked},
        )

    path = "/out/{token}/{name}"
    return [Route(path, deliver), Route(path, preflight, methods=["OPTIONS"])]


async def own_blob(services: Services, url: str, base: str = "") -> BlobRef | None:
    """The stored bytes that a URL of this server means; None for every other URL.

    A signed link is known by its signature and an upload by its id, whatever name this server was
    reached under. NotFound: what it led to is gone, and the URL is ours, because it begins with
    the setting public_url or with `base`, by which whoever asks knows this server.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    ours = [urlsplit(known).netloc.lower() for known in (services.http.public_url, base) if known]
    is_ours = parts.netloc.lower() in ours
    if link := OUT_PATH.fullmatch(parts.path):
        key = services.signer.read(link[1], services.clock())
        if key is not None:
            return BlobRef(key=key, mime="application/octet-stream", size_bytes=0)
    elif (upload := FILE_PATH.fullmatch(parts.path)) and (file_id := parse_id(upload[1])):
        try:
            return (await services.files.get(file_id)).blob
        except NotFound:
            if is_ours:
                raise
        return None
    else:
        return None
    if is_ours:
        raise NotFound("this link has expired")
    return None


async def take_image(
    services: Services,
    value: str,
    field_name: str,
    caller: Caller | None = None,
    base: str = "",
) -> ImageInput:
    """An input picture as dialects get it: a URL is judged, inline bytes are checked and stored.

    `caller` may use the uploads that are his own, and knows this server as `base`; None: the
    dialect has seen to both before. InvalidRequest, InputUnreachable (a private address, say) or
    TooLarge, naming the field.
    """
    text = value.strip()
    if text[:8].lower().startswith(("http://", "https://")):
        if len(text) > URL_MAX:
            raise InvalidRequest(f"a URL of at most {URL_MAX} characters", field=field_name)
        if caller is not None:
            await _judge_own(services, text, field_name, caller, base)
        await services.intake.check_url(text, field_name)
        return ImageInput(url=text, field_name=field_name)
    return await services.intake.take_text(text, field_name)


def sniff(head: bytes) -> str | None:
    """The type of a picture by its first bytes, or None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    return None


async def _judge_own(
    services: Services, url: str, field_name: str, caller: Caller, base: str
) -> None:
    """A file of ours that is gone: InputUnreachable naming the field. Another key's is like it."""
    try:
        is_gone = await _is_anothers(services, url, caller)
        await own_blob(services, url, base)
    except NotFound:
        is_gone = True
    if is_gone:
        message = f"{field_name}: a file of this server that is no longer there"
        raise InputUnreachable(message, field=field_name)


async def _is_anothers(services: Services, url: str, caller: Caller) -> bool:
    with suppress(ValueError, NotFound):  # malformed, or not ours: told by the next who looks
        upload = FILE_PATH.fullmatch(urlsplit(url).path)
        file_id = parse_id(upload[1]) if upload else None
        if file_id:
            return not caller.may_see((await services.files.get(file_id)).key_id)
    return False


async def _file(services: Services, request: Request, key: str, token: str) -> Response:
    size = await services.blobs.size(key)
    is_plain = request.method == "GET" and CONDITIONS.isdisjoint(request.headers.keys())
    is_small = is_plain and size <= CHUNK_BYTES  # its first bytes are all there is to send
    head = await services.blobs.get_range(key, 0, size if is_small else HEAD_BYTES)
    mime = sniff(head)
    expires_at = _expiry(token)
    made_at = expires_at - services.links_on("", "").keep
    headers = _headers(size, mime, key, made_at, expires_at - services.clock())
    if is_small:
        return Response(head, headers=headers)
    if _is_known(request, headers["ETag"], made_at):
        headers.pop("Content-Length")
        return Response(status_code=304, headers=headers)
    span = _span(request, size, headers["ETag"], made_at)
    if span is None:
        headers |= {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
        return Response(status_code=416, headers=headers)
    status = 200
    if span != Span(0, size):
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{size}"
        headers["Content-Length"] = str(span.end - span.start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_chunks(services, key, span), status, headers)


def _headers(
    size: int, mime: str | None, key: str, made_at: datetime, left: timedelta
) -> dict[str, str]:
    fresh_s = min(CACHE_MAX_S, max(0, int(left.total_seconds())))
    headers = {
        **ANY_ORIGIN,
        "Access-Control-Expose-Headers": "Content-Length, Content-Range, ETag",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "X-Content-Type-Options": "nosniff",
        "Content-Type": mime or "application/octet-stream",
        "Content-Length": str(size),
        "Accept-Ranges": "bytes",
        "Cache-Control": f"public, max-age={fresh_s}",
        "ETag": '"' + hashlib.sha256(f"{key} {size}".encode()).hexdigest()[:32] + '"',
        "Last-Modified": format_datetime(made_at, usegmt=True),
    }
    if mime is None:  # nothing that a browser should open
        headers["Content-Disposition"] = "attachment"
    return headers


async def _chunks(services: Services, key: str, span: Span) -> AsyncIterator[bytes]:
    for start in range(span.start, span.end, CHUNK_BYTES):
        yield await services.blobs.get_range(key, start, min(start + CHUNK_BYTES, span.end))


def _is_known(request: Request, etag: str, made_at: datetime) -> bool:
    """Whether the caller's copy is still good."""
    tags = request.headers.get("if-none-match")
    if tags is not None:
        return tags.strip() == "*" or etag in _tags(tags)
    since = _date(request.headers.get("if-modified-since"))
    return since is not None and made_at <= since


def _span(request: Request, size: int, etag: str, made_at: datetime) -> Span | None:
    """What is asked for: all of it, one range, or None when the range cannot be met.

    Several ranges at once are answered with everything, as HTTP allows.
    """
    everything = Span(0, size)
    asked = re.fullmatch(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", request.headers.get("range", ""))
    condition = request.headers.get("if-range")
    if condition is not None and condition.strip() != etag and _date(condition) != made_at:
        return everything
    if asked is None or asked[1] == asked[2] == "":
        return everything
    if not asked[1]:
        length = int(asked[2])
        return Span(max(0, size - length), size) if length and size else None
    start = int(asked[1])
    end = min(int(asked[2]) + 1, size) if asked[2] else size
    if asked[2] and int(asked[2]) < start:
        return everything
    return Span(start, end) if start < size else None


def _expiry(token: str) -> datetime:
    """When a link that was found genuine ends."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (ValueError, binascii.Error):
        raise NotFound("no such link") from None
    seconds = int.from_bytes(raw[SIGNATURE_BYTES : SIGNATURE_BYTES + 6])
    return datetime.fromtimestamp(seconds, UTC)


def _tags(text: str) -> Sequence[str]:
    return [tag.strip().removeprefix("W/") for tag in text.split(",")]


def _date(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found


def _gone() -> Response:
    body: JSON = {"detail": "The requested resource could not be found.", "status": 404}
    headers = {**ANY_ORIGIN, "Cache-Control": "no-store"}
    return Answer(body, 404, headers)
