"""The input pictures of a request: taken in, and how the caller's words are echoed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fluxserve.core.access import Caller
from fluxserve.core.errors import InvalidRequest, NotFound, Problem, Rule
from fluxserve.core.ids import parse_id
from fluxserve.core.inputs import load_input
from fluxserve.core.request import JSON, ImageInput
from fluxserve.dialects.base import Services
from fluxserve.dialects.delivery import FILE_PATH, own_blob, take_image
from fluxserve.dialects.links import EXTENSION, Links
from fluxserve.dialects.replicate.inputs import Inputs

NUMBERS = (int, float, bool)
ECHO_MAX = 256_000  # characters of a string that is echoed as it came
_SCHEME = re.compile(r"(https?://|data:)", re.IGNORECASE)


@dataclass(slots=True)
class Taken:
    """Pictures by field, and links that stand for long strings in the echo."""

    pictures: dict[str, tuple[ImageInput, ...]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def echo(self, value: JSON) -> JSON:
        """What the caller said, with stored pictures as links and other long strings cut."""
        if isinstance(value, str) and len(value) > ECHO_MAX:
            return self.shown.get(value) or f"{value[:64]}... ({len(value)} characters)"
        if isinstance(value, Mapping):
            return {
                key: item if type(item) in NUMBERS else self.echo(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.echo(item) for item in value]
        return value


async def take_pictures(
    services: Services, links: Links, caller: Caller, inputs: Inputs, said: Mapping[str, JSON]
) -> Taken:
    """Take in every picture of the input; InvalidRequest or TooLarge naming the field."""
    taken = Taken()
    for name in inputs.pictures:
        value = said.get(name)
        texts = value if isinstance(value, list) else [] if value is None else [value]
        found: list[ImageInput] = []
        for position, text in enumerate(texts):
            assert isinstance(text, str), "checked against the table before"
            where = f"input.{name}" if text is value else f"input.{name}.{position}"
            image = await _take(services, links, caller, text, where)
            found.append(image)
            if image.blob is not None and len(text) > ECHO_MAX:
                suffix = EXTENSION.get(image.blob.mime, "bin")
                taken.shown[text] = links.blob(image.blob, f"{name}.{suffix}", services.clock())
        if found:
            taken.pictures[name] = tuple(found)
    return taken


async def _take(
    services: Services, links: Links, caller: Caller, text: str, where: str
) -> ImageInput:
    text = text.strip()
    if not _SCHEME.match(text):
        raise _not_a_uri(where)
    if text[:5].lower() != "data:":
        try:
            data = await _own(services, links, caller, text)
        except NotFound:
            raise _not_a_uri(where, ": the file does not exist or has expired") from None
        if data is not None:
            return await services.intake.take(data, where)
    return await take_image(services, text, where)


async def _own(services: Services, links: Links, caller: Caller, url: str) -> bytes | None:
    """The bytes behind a URL of ours; None for any other. NotFound: gone, or another key's."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    is_here = parts.netloc.lower() == urlsplit(links.base).netloc.lower()
    upload = FILE_PATH.fullmatch(parts.path)
    file_id = parse_id(upload[1]) if upload else None
    if file_id is not None:
        try:
            file = await services.files.get(file_id)
        except NotFound:
            if is_here:
                raise
            return None
        if not caller.may_see(file.key_id):
            raise NotFound("there is no such file")
        return await services.blobs.get(file.blob.key)
    blob = await own_blob(services, url, links.base)
    return await services.blobs.get(blob.key) if blob is not None else None


def _not_a_uri(where: str, more: str = "") -> InvalidRequest:
    message = f"Does not match format 'uri'{more}"
    return InvalidRequest.of(
        [Problem(field=where, rule=Rule.FORMAT, message=message, expected="uri")]
    )


async def sized(services: Services, taken: Taken, name: str) -> None:
    """Bring the picture of a field in whose size must be known now, though it was a URL."""
    images = taken.pictures.get(name, ())
    if images and images[0].url is not None:
        fetched = await load_input(services.intake, images[0])
        stored = await services.intake.take(fetched.data, f"input.{name}")
        taken.pictures[name] = (stored, *images[1:])
