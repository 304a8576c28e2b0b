"""Uploads: a file in, a link out that every dialect takes as an input picture."""

from datetime import timedelta

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive

from fluxserve.core.errors import InvalidRequest, NotFound, TooLarge
from fluxserve.core.ids import new_id, parse_id
from fluxserve.core.ports import StoredFile
from fluxserve.core.request import JSON
from fluxserve.dialects.base import Services, answering, read_body
from fluxserve.dialects.links import EXTENSION, Links
from fluxserve.dialects.native.predictions import caller_of
from fluxserve.dialects.native.words import error
from fluxserve.dialects.wire import Answer

FRAME_MAX_BYTES = 64 * 1024  # of a multipart body beside the file itself
KEPT_S = 24 * 3600.0  # an upload that nothing uses is gone after this


def routes(services: Services, mount: str) -> list[Route]:
    async def upload(request: Request) -> Response:
        caller = await caller_of(services, request)
        data, name = await _bytes(services, request)
        image = await services.intake.take(data, "file")
        assert image.blob is not None, "inline bytes are stored"
        at = services.clock()
        file = StoredFile(
            id=new_id(),
            key_id=caller.key_id,
            blob=image.blob,
            name=name,
            created_at=at,
            expires_at=at + timedelta(seconds=services.retention_s or KEPT_S),
        )
        await services.files.add(file)
        return Answer(_render(file, services.links(request, mount)), 201)

    async def get(request: Request) -> Response:
        caller = await caller_of(services, request)
        id_ = parse_id(request.path_params["id"])
        if id_ is None:
            raise NotFound("there is no such file")
        file = await services.files.get(id_)
        if not caller.may_see(file.key_id):
            raise NotFound("there is no such file")
        return Answer(_render(file, services.links(request, mount)))

    answer = answering(error)
    return [
        Route(f"{mount}/files", answer(upload), methods=["POST"]),
        Route(f"{mount}/files/{{id}}", answer(get), methods=["GET"]),
    ]


async def _bytes(services: Services, request: Request) -> tuple[bytes, str]:
    """The uploaded bytes and their name: a multipart part `file`, or the bare body."""
    limit = services.http.upload_max_bytes
    if not request.headers.get("content-type", "").startswith("multipart/"):
        return await read_body(request, limit), request.headers.get("x-filename", "upload")[:255]
    most = limit + FRAME_MAX_BYTES
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise TooLarge(f"file: at most {limit} bytes", field="file")
    bounded = Request(request.scope, _bounded(request, most))
    try:
        async with bounded.form(max_files=1, max_fields=16) as form:
            part = form.get("file")
            if not isinstance(part, UploadFile):
                raise InvalidRequest("a multipart part named file is required", field="file")
            return await part.read(), (part.filename or "upload")[:255]
    except (HTTPException, MultiPartException, KeyError, ValueError, UnicodeError):
        raise InvalidRequest("file: the form cannot be read", field="file") from None


def _bounded(request: Request, most: int) -> Receive:
    """What the request receives, until it is more than `most` bytes: TooLarge."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > most:
            raise TooLarge(f"file: at most {most - FRAME_MAX_BYTES} bytes", field="file")
        return message

    return receive


def _render(file: StoredFile, links: Links) -> dict[str, JSON]:
    extension = EXTENSION.get(file.blob.mime, "bin")
    return {
        "id": file.id,
        "name": file.name,
        "mime": file.blob.mime,
        "size_bytes": file.blob.size_bytes,
        "width": file.blob.width,
        "height": file.blob.height,
        "url": links.blob(file.blob, f"{file.id}.{extension}", file.created_at),
        "created_at": file.created_at.isoformat(),
        "expires_at": file.expires_at.isoformat(),
    }
