"""WaveSpeed's uploads: multipart, or a ticket whose URL takes one PUT without a key.

    POST media/upload/binary   form field `file`            -> download_url
    POST media/uploads         {filename, size}             -> download_url, upload.url
    PUT  upload.url            the bytes; the token in it is the permission, once, for 15 minutes

Where the bytes will be is decided with the ticket, so its download_url holds from the start. They
are kept as they came; what they are worth as a picture is judged when a request uses them.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from fluxserve.core.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Problem,
    Rule,
    TooLarge,
)
from fluxserve.core.ids import new_id
from fluxserve.core.ports import StoredFile
from fluxserve.core.request import JSON, BlobRef
from fluxserve.core.schema import Field, Kind, check
from fluxserve.dialects.base import Services, read_body, read_object
from fluxserve.dialects.links import Links, safe_name
from fluxserve.dialects.wavespeed.errors import success
from fluxserve.dialects.wavespeed.predictions import caller_of

TICKET_S = 15 * 60.0
FOR_EVER_S = 3650 * 86400.0
FRAME_MAX_BYTES = 64 * 1024  # of a multipart body beside the file itself
TICKET_FIELDS = (
    Field(name="filename", kind=Kind.STRING, default="upload"),
    Field(name="size", kind=Kind.INTEGER, min=0),
    Field(name="content_type", kind=Kind.STRING, max_length=200),
)
OTHER = "application/octet-stream"
# First bytes of the picture formats that are read here; anything else is served as plain bytes.
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a PUT may bring, and where it goes. Travels in the URL, signed."""

    id: str  # of the file that comes to be
    name: str
    size: int | None  # bytes; None: not said
    key_id: str | None

    @property
    def key(self) -> str:
        return f"uploads/{self.id}"

    def packed(self) -> str:
        return json.dumps([self.id, self.name, self.size, self.key_id], separators=(",", ":"))

    @classmethod
    def unpacked(cls, text: str) -> "Ticket | None":
        """None for a token that was signed for something else."""
        try:
            id_, name, size, key_id = json.loads(text)
        except (ValueError, TypeError):
            return None
        return cls(id=id_, name=name, size=size, key_id=key_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The handlers under one mount."""

    services: Services
    mount: str
    arriving: set[str] = field(default_factory=set)  # tickets whose bytes are on their way

    async def upload(self, request: Request) -> Response:
        caller = await caller_of(self.services, request)
        await self.services.limiter.hit(caller, "create")
        data, name = await self._part(request)
        ticket = Ticket(id=new_id(), name=safe_name(name), size=len(data), key_id=caller.key_id)
        file = await self._keep(ticket, data)
        shown = self._shown(ticket, file.created_at, request)
        return success({**shown, "url": shown["download_url"]})

    async def ticket(self, request: Request) -> Response:
        caller = await caller_of(self.services, request)
        await self.services.limiter.hit(caller, "create")
        body = await read_object(request, self.services.http.body_max_bytes)
        checked = check(TICKET_FIELDS, body, lenient=True)
        if checked.problems:
            raise InvalidRequest.of(checked.problems)
        values = checked.values
        size = values["size"] if isinstance(values["size"], int) else None
        limit = self.services.http.upload_max_bytes
        if size is not None and size > limit:
            raise TooLarge(f"a file may have at most {limit} bytes, not {size}", field="size")
        ticket = Ticket(
            id=new_id(),
            name=safe_name(str(values["filename"])),
            size=size,
            key_id=caller.key_id,
        )
        at = self.services.clock()
        token = self.services.signer.token(ticket.packed(), at + timedelta(seconds=TICKET_S))
        links = self.services.links(request, self.mount)
        kind = values["content_type"]
        instruction: dict[str, JSON] = {
            "method": "PUT",
            "url": links.to(f"/media/uploads/put/{token}"),
            "headers": {"Content-Type": kind if isinstance(kind, str) and kind else OTHER},
        }
        return success({**self._shown(ticket, at, request), "upload": instruction})

    async def put(self, request: Request) -> Response:
        """The bytes of a ticket, without a key. Forbidden, Conflict when it was used."""
        at = self.services.clock()
        text = self.services.signer.read(request.path_params["token"], at)
        ticket = Ticket.unpacked(text) if text else None
        if ticket is None:
            raise Forbidden("this upload link is not valid, or its 15 minutes are over")
        if ticket.id in self.arriving or await self._is_there(ticket.id):
            raise Conflict("this upload link was used already")
        self.arriving.add(ticket.id)
        try:
            await self._keep(ticket, await self._ticketed(ticket, request))
        finally:
            self.arriving.discard(ticket.id)
        return success({})

    async def _ticketed(self, ticket: Ticket, request: Request) -> bytes:
        limit = self.services.http.upload_max_bytes
        if ticket.size is None:
            return await read_body(request, limit)
        message = f"the ticket is for {ticket.size} bytes, and the body has another size"
        wrong = InvalidRequest.of([Problem(field="size", rule=Rule.OTHER, message=message)])
        try:
            data = await read_body(request, ticket.size)
        except TooLarge:
            raise wrong from None
        if len(data) != ticket.size:
            raise wrong
        return data

    async def _part(self, request: Request) -> tuple[bytes, str]:
        """The part `file` of a multipart body and its name; InvalidRequest, TooLarge."""
        limit = self.services.http.upload_max_bytes
        try:
            async with bounded(request, limit + FRAME_MAX_BYTES).form(
                max_files=1, max_fields=16
            ) as form:
                part = form.get("file")
                if not isinstance(part, UploadFile):
                    words = "file is required: a part of a multipart form"
                    raise InvalidRequest.of(
                        [Problem(field="file", rule=Rule.REQUIRED, message=words)]
                    )
                return await part.read(), part.filename or "upload"
        except (HTTPException, MultiPartException) as error:
            said = error.detail if isinstance(error, HTTPException) else error.message
            raise InvalidRequest(f"the form cannot be read: {said}", field="file") from error

    async def _keep(self, ticket: Ticket, data: bytes) -> StoredFile:
        at = self.services.clock()
        file = StoredFile(
            id=ticket.id,
            key_id=ticket.key_id,
            blob=await self.services.blobs.put(ticket.key, data, mime_of(data)),
            name=ticket.name,
            created_at=at,
            expires_at=at + timedelta(seconds=self.services.retention_s or FOR_EVER_S),
        )
        await self.services.files.add(file)
        return file

    async def _is_there(self, id_: str) -> bool:
        try:
            await self.services.files.get(id_)
        except NotFound:
            return False
        return True

    def _shown(self, ticket: Ticket, at: datetime, request: Request) -> dict[str, JSON]:
        links: Links = self.services.links(request, self.mount)
        ref = BlobRef(key=ticket.key, mime=OTHER, size_bytes=ticket.size or 0)
        return {
            "type": "image",
            "download_url": links.blob(ref, ticket.name, at),
            "filename": ticket.name,
            "size": ticket.size or 0,
        }


def bounded(request: Request, limit: int) -> Request:
    """The same request; TooLarge as soon as its body is known to be over `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body may have at most {limit} bytes, not {declared}")
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise TooLarge(f"the body may have at most {limit} bytes")
        return message

    return Request(request.scope, receive)


def mime_of(data: bytes) -> str:
    """The type told from the first bytes; never one that a browser would run."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((mime for magic, mime in MAGIC if data.startswith(magic)), OTHER)
