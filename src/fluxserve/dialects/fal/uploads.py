"""fal's uploads, as the JavaScript client makes them through a proxy.

POST storage/upload/initiate   {file_name, content_type} -> upload_url, file_url
PUT  upload_url                the bytes, without a key: the token in it is the permission, once

Where the bytes will be is decided with the first call, so `file_url` holds from the start. They are
kept as they came; what they are worth as a picture is judged when a request uses them.
"""

import json
from dataclasses import dataclass, field
from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.errors import Conflict, Forbidden, InvalidRequest, NotFound
from fluxserve.core.ids import new_id
from fluxserve.core.ports import StoredFile
from fluxserve.core.request import BlobRef
from fluxserve.core.schema import Field, Kind, check
from fluxserve.dialects.base import Services, read_body, read_object
from fluxserve.dialects.fal.calls import NO_STORE, caller_of
from fluxserve.dialects.links import safe_name
from fluxserve.dialects.wire import Answer

TICKET_S = 15 * 60.0
FOR_EVER_S = 3650 * 86400.0
BYTES = "application/octet-stream"
ANY_ORIGIN = {"Access-Control-Allow-Origin": "*"}
FIELDS = (
    Field(name="file_name", kind=Kind.STRING, default="upload"),
    Field(name="content_type", kind=Kind.STRING, max_length=200),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """The handlers under one mount."""

    services: Services
    mount: str
    arriving: set[str] = field(default_factory=set)  # tickets whose bytes are on their way

    async def initiate(self, request: Request) -> Response:
        caller = await caller_of(self.services, request)
        await self.services.limiter.hit(caller, "create")
        body = await read_object(request, self.services.http.body_max_bytes)
        checked = check(FIELDS, body)
        if checked.problems:
            raise InvalidRequest.of(checked.problems)
        id_, name = new_id(), safe_name(str(checked.values["file_name"]))
        at = self.services.clock()
        packed = json.dumps(["fal", id_, name, caller.key_id], separators=(",", ":"))
        token = self.services.signer.token(packed, at + timedelta(seconds=TICKET_S))
        links = self.services.links(request, self.mount)
        ref = BlobRef(key=f"uploads/{id_}", mime=BYTES, size_bytes=0)
        shown = {
            "upload_url": links.to(f"/storage/put/{token}"),
            "file_url": links.blob(ref, name, at),
        }
        return Answer(shown, headers=NO_STORE)

    async def put(self, request: Request) -> Response:
        """The bytes. Forbidden for a bad token, Conflict when it was used."""
        at = self.services.clock()
        text = self.services.signer.read(request.path_params["token"], at)
        ticket = _unpacked(text)
        if ticket is None:
            raise Forbidden("this upload link is not valid, or its 15 minutes are over")
        id_, name, key_id = ticket
        if id_ in self.arriving or await self._is_there(id_):
            raise Conflict("this upload link was used already")
        self.arriving.add(id_)
        try:
            data = await read_body(request, self.services.http.upload_max_bytes)
            keep_s = self.services.retention_s or FOR_EVER_S
            file = StoredFile(
                id=id_,
                key_id=key_id,
                blob=await self.services.blobs.put(f"uploads/{id_}", data, BYTES),
                name=name,
                created_at=at,
                expires_at=at + timedelta(seconds=keep_s),
            )
            await self.services.files.add(file)
        finally:
            self.arriving.discard(id_)
        return Response(status_code=200, headers={**ANY_ORIGIN, **NO_STORE})

    async def preflight(self, request: Request) -> Response:
        """Pages of any origin may upload: the link itself is the permission."""
        asked = request.headers.get("access-control-request-headers", "content-type")
        allowed = {"Access-Control-Allow-Methods": "PUT", "Access-Control-Allow-Headers": asked}
        return Response(status_code=204, headers={**ANY_ORIGIN, **allowed})

    async def _is_there(self, id_: str) -> bool:
        try:
            await self.services.files.get(id_)
        except NotFound:
            return False
        return True


def _unpacked(text: str | None) -> tuple[str, str, str | None] | None:
    """Id, name and key of a ticket; None for a token that was signed for something else."""
    try:
        value = json.loads(text or "")
    except ValueError:
        return None
    if isinstance(value, list) and len(value) == 4 and value[0] == "fal":
        return value[1], value[2], value[3]
    return None
