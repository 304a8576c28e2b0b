"""The Files API: upload, metadata, list, delete, signed download.

POST   /files                multipart: content, metadata, type, filename
GET    /files, /files/{id}   metadata behind the key, never the bytes
DELETE /files/{id}           204
GET    /files/{id}/download  the bytes, by a signature of owner, id and expiry
"""

import asyncio
import base64
import hashlib
import hmac
import json
import mimetypes
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import quote

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.access import Caller
from fluxserve.core.errors import InvalidRequest, NotFound, Problem, Rule, TooLarge
from fluxserve.core.ids import new_id, parse_id, to_base32
from fluxserve.core.ports import StoredFile
from fluxserve.core.request import JSON
from fluxserve.dialects.base import MIB, Services
from fluxserve.dialects.delivery import HEAD_BYTES, sniff
from fluxserve.dialects.links import Links
from fluxserve.dialects.replicate.account import username
from fluxserve.dialects.replicate.api import answer, page
from fluxserve.dialects.replicate.paging import neighbours, read_cursor
from fluxserve.dialects.replicate.render import stamp

KEPT = timedelta(hours=24)
PAGE = 100
NAME_MAX = 255  # bytes
FORM_EXTRA = MIB  # what a form may have besides its file
FIELD_MAX = 256 * 1024  # bytes of one text field
UNKNOWN_TYPE = "application/octet-stream"
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")


class Files:
    """The handlers; `mount` is where links point to."""

    def __init__(self, services: Services, mount: str) -> None:
        self._services = services
        self._mount = mount

    async def upload(self, request: Request, caller: Caller) -> Response:
        async with _form(request, self._services.http.upload_max_bytes) as form:
            file = await self._store(form, caller)
        return answer(show(file, self._links(request)), 201)

    async def list(self, request: Request, caller: Caller) -> Response:
        here = read_cursor(request.query_params.get("cursor"))
        key_id = None if caller.is_admin else caller.key_id
        rows = await self._services.files.page(key_id, here.key if here else None, PAGE + 1)
        last = (rows[PAGE - 1].created_at, rows[PAGE - 1].id) if len(rows) > PAGE else None
        links = self._links(request)
        following, before = neighbours(links, "/files", (), here, last)
        return answer(page([show(row, links) for row in rows[:PAGE]], following, before))

    async def get(self, request: Request, caller: Caller) -> Response:
        file = await self._find(request.path_params["id"], caller)
        return answer(show(file, self._links(request)))

    async def delete(self, request: Request, caller: Caller) -> Response:
        file = await self._find(request.path_params["id"], caller)
        orphan = await self._services.files.delete(file.id)
        if orphan is not None:
            await self._services.blobs.delete(orphan.key)
        return Response(status_code=204)

    async def download(self, request: Request) -> Response:
        """For whoever holds a signature made with the account's webhook secret."""
        asked = request.query_params
        shown = request.path_params["id"]
        owner, expiry = asked.get("owner", ""), asked.get("expiry", "")
        file_id = parse_id(shown)
        if file_id is None or not re.fullmatch(r"\d{1,12}", expiry):
            raise NotFound("there is no such file")
        file = await self._services.files.get(file_id)
        # A plus sign that nobody escaped arrives as a space.
        given = asked.get("signature", "").replace(" ", "+")
        wanted = sign(self._services, owner, shown, expiry)
        is_good = hmac.compare_digest(given.encode(), wanted.encode()) and owner == username()
        if not is_good or int(expiry) < self._services.clock().timestamp():
            raise NotFound("there is no such file")
        data = await self._services.blobs.get(file.blob.key)
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name)}",
            "X-Content-Type-Options": "nosniff",
            "ETag": f'"{file.md5}"',
        }
        return Response(data, media_type=file.blob.mime, headers=headers)

    def _links(self, request: Request) -> Links:
        return self._services.links(request, self._mount)

    async def _find(self, shown: str, caller: Caller) -> StoredFile:
        file_id = parse_id(shown)
        if file_id is None:
            raise NotFound("there is no such file")
        file = await self._services.files.get(file_id)
        if not caller.may_see(file.key_id):
            raise NotFound("there is no such file")
        return file

    async def _store(self, form: FormData, caller: Caller) -> StoredFile:
        content = form.get("content")
        if content is None:
            raise _bad("", Rule.REQUIRED, "content is required")
        if not isinstance(content, UploadFile):
            raise _bad("content", Rule.TYPE, "Invalid type. Expected: file, given: string")
        limit = self._services.http.upload_max_bytes
        if (content.size or 0) > limit:
            raise TooLarge(f"a file may have at most {limit} bytes, not {content.size}")
        metadata = await _metadata(form)
        data = await content.read()
        name = _text(form, "filename") or content.filename or "file"
        mime = _mime(data, _text(form, "type") or content.content_type, name)
        md5, sha256 = await asyncio.to_thread(_digests, data)
        file_id, at = new_id(), self._services.clock()
        blob = await self._services.blobs.put(f"uploads/{file_id}", data, mime)
        file = StoredFile(
            id=file_id,
            key_id=caller.key_id,
            blob=type(blob)(key=blob.key, mime=mime, size_bytes=len(data), sha256=sha256),
            name=_short(name),
            created_at=at,
            expires_at=at + KEPT,
            md5=md5,
            metadata=metadata,
        )
        await self._services.files.add(file)
        return file


def show(file: StoredFile, links: Links) -> dict[str, JSON]:
    """A file as the API shows it; nothing in it is ever null."""
    shown = to_base32(file.id)
    return {
        "id": shown,
        "name": file.name,
        "content_type": file.blob.mime,
        "size": file.blob.size_bytes,
        "etag": file.md5,
        "checksums": {"sha256": file.blob.sha256, "md5": file.md5},
        "metadata": file.metadata,
        "created_at": stamp(file.created_at),
        "expires_at": stamp(file.expires_at),
        "urls": {"get": links.to(f"/files/{shown}")},
    }


def sign(services: Services, owner: str, shown_id: str, expiry: str) -> str:
    """The signature of a download link: HMAC-SHA-256 with the key of the webhook secret."""
    secret = services.secrets.webhook_secret("default").removeprefix("whsec_")
    message = f"{owner} {shown_id} {expiry}".encode()
    mac = hmac.new(base64.b64decode(secret), message, hashlib.sha256)
    return base64.b64encode(mac.digest()).decode()


@asynccontextmanager
async def _form(request: Request, file_max: int) -> AsyncIterator[FormData]:
    """The multipart form of an upload; its body is bounded while it is read."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise _bad("", Rule.FORMAT, "the body must be multipart/form-data with a part `content`")
    most = file_max + FORM_EXTRA
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise TooLarge(f"a file may have at most {file_max} bytes")

    async def bounded() -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise TooLarge(f"a file may have at most {file_max} bytes")
            yield chunk

    parser = MultiPartParser(
        request.headers, bounded(), max_files=8, max_fields=200, max_part_size=FIELD_MAX
    )
    try:
        yield await _parsed(parser)
    finally:
        # The form closes the files it has; a body that breaks off leaves others open.
        for file in parser._files_to_close_on_error:
            file.close()


async def _parsed(parser: MultiPartParser) -> FormData:
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise _bad("", Rule.FORMAT, f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, UnicodeError):
        raise _bad("", Rule.FORMAT, "the form cannot be read") from None


async def _metadata(form: FormData) -> Mapping[str, JSON]:
    """From a text field, a file part, or fields named metadata[a][b]."""
    given = form.get("metadata")
    if given is not None:
        if isinstance(given, UploadFile):
            raw = await given.read(FIELD_MAX + 1)
        else:
            raw = given.encode()
        if len(raw) > FIELD_MAX:
            raise TooLarge(f"metadata may have at most {FIELD_MAX} bytes", field="metadata")
        try:
            value = json.loads(raw or b"{}")
            json.dumps(value, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise _bad("metadata", Rule.FORMAT, "Does not match format 'json'") from None
        if not isinstance(value, dict):
            raise _bad("metadata", Rule.TYPE, "Invalid type. Expected: object, given: another")
        return value
    found: dict[str, JSON] = {}
    for name, item in form.multi_items():
        parts = re.findall(r"\[([^\[\]]{1,100})\]", name)
        if name.startswith("metadata[") and parts and isinstance(item, str) and len(parts) <= 8:
            _put(found, parts, item)
    return found


def _put(tree: dict[str, JSON], path: list[str], value: str) -> None:
    for name in path[:-1]:
        below = tree.get(name)
        if not isinstance(below, dict):
            below = tree[name] = {}
        tree = below
    tree[path[-1]] = value


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value.strip() if isinstance(value, str) else ""


def _mime(data: bytes, declared: str | None, name: str) -> str:
    """By the bytes for pictures; else as declared, else by the name."""
    found = sniff(data[:HEAD_BYTES])
    if found:
        return found
    kind = (declared or "").split(";")[0].strip().lower()
    if kind in ("", UNKNOWN_TYPE) or not _TYPE.fullmatch(kind):
        kind = mimetypes.guess_type(name)[0] or UNKNOWN_TYPE
    # What a picture is called and is not must not be taken for one.
    return UNKNOWN_TYPE if kind.startswith("image/") else kind


def _short(name: str) -> str:
    """The last part of a path, at most 255 bytes of UTF-8."""
    base = re.split(r"[\\/]", name)[-1].strip() or "file"
    clean = "".join(character for character in base if character.isprintable())
    return clean.encode("utf-8", "ignore")[:NAME_MAX].decode("utf-8", "ignore") or "file"


def _digests(data: bytes) -> tuple[str, str]:
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return md5, hashlib.sha256(data).hexdigest()


def _bad(field: str, rule: Rule, message: str) -> InvalidRequest:
    return InvalidRequest.of([Problem(field=field, rule=rule, message=message)])
