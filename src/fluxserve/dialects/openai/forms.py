"""Form bodies: parts in order, files as bytes, everything else as the JSON it stands for."""

import json
import re
from collections.abc import AsyncGenerator, Sequence

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fluxserve.core.errors import InvalidRequest, Problem, Rule, TooLarge
from fluxserve.core.request import JSON
from fluxserve.dialects.base import HttpSettings
from fluxserve.dialects.openai.reading import PICTURES_MAX, Pictures, is_picture, is_url

FIELDS_MAX = 64  # parts that are no file
FRAME_MAX_BYTES = 1024 * 1024  # of a form beside its files
_LORA = re.compile(r"loras\[(\d{0,2})\](?:\[(path|scale)\])?")


def is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "multipart/form-data"


async def read_form(request: Request, http: HttpSettings) -> tuple[dict[str, JSON], Pictures]:
    """The fields of a form and its pictures; InvalidRequest, TooLarge.

    `limits.upload_max_bytes` bounds all files of one form together.
    """
    parser = MultiPartParser(
        request.headers,
        _bounded(request, http.upload_max_bytes + FRAME_MAX_BYTES),
        max_files=PICTURES_MAX + 1,
        max_fields=FIELDS_MAX,
        max_part_size=http.body_max_bytes,
    )
    try:
        return await _sorted((await parser.parse()).multi_items())
    except MultiPartException as error:
        raise InvalidRequest(f"The form cannot be read: {error.message}") from error
    finally:
        # A form that ends in the middle leaves files that no part of the result leads to.
        for file in parser._files_to_close_on_error:
            file.close()


async def _sorted(
    parts: Sequence[tuple[str, UploadFile | str]],
) -> tuple[dict[str, JSON], Pictures]:
    body: dict[str, JSON] = {}
    found = Pictures()
    loras: list[dict[str, JSON]] = []
    for name, part in parts:
        if name == "mask" or is_picture(name):
            source = part if isinstance(part, str) else await part.read()
            if not source:
                continue
            if isinstance(source, str) and is_url(source):
                found.urls[name] = source
            if name == "mask":
                found.mask = source
            elif len(found.images) == PICTURES_MAX:
                raise _wrong(name, f"at most {PICTURES_MAX} pictures", Rule.MAX_ITEMS)
            else:
                found.name = found.name if found.images else name.partition("[")[0]
                found.images.append((name, source))
        elif not isinstance(part, str):
            raise _wrong(name[:100], "no file belongs here")
        elif match := _LORA.fullmatch(name):
            _add_lora(loras, match[1], match[2] or "path", part)
        elif name == "loras":
            body[name] = _listed(part)
        else:
            body[name] = part
    if loras:
        body["loras"] = loras
    return body, found


def _add_lora(loras: list[dict[str, JSON]], index: str, key: str, value: str) -> None:
    """`loras[0][path]`; without a number, a member that is there already opens the next one."""
    position = int(index) if index else max(0, len(loras) - (bool(loras) and key not in loras[-1]))
    if position > len(loras):
        raise _wrong("loras", "numbers go up from 0")
    if position == len(loras):
        loras.append({})
    loras[position][key] = value


def _listed(text: str) -> JSON:
    """A list as JSON text; anything else is one adapter's name."""
    if not text.lstrip().startswith("["):
        return [text] if text.strip() else None
    try:
        value: JSON = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong("loras", "a JSON list is expected") from None
    return value


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces; TooLarge as soon as it is known to be over `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body may have at most {limit} bytes, not {declared}")
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > limit:
            raise TooLarge(f"the body may have at most {limit} bytes")
        yield chunk


def _wrong(name: str, message: str, rule: Rule = Rule.OTHER) -> InvalidRequest:
    return InvalidRequest.of([Problem(field=name, rule=rule, message=message)])
