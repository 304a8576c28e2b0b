"""An OpenAI body, JSON or form, on its way to our words.

body -> pictures_in()  its pictures, taken out of it
     -> read()         everything else, checked
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from fluxserve.core.errors import InvalidRequest, Problem, Rule
from fluxserve.core.request import JSON, LoraRef
from fluxserve.core.schema import Field, Kind, check
from fluxserve.core.sizes import parse_ratio, parse_size

PICTURES_MAX = 16
LORA_SCALE_MAX = 4.0
AUTO = "auto"
QUALITIES = ("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd")

Source: TypeAlias = str | bytes  # a URL, a data URI or base64; or the file itself


def _choice(name: str, *choices: str) -> Field:
    return Field(name=name, kind=Kind.STRING, choices=choices)


FIELDS = (
    Field(name="prompt", kind=Kind.STRING),
    Field(name="model", kind=Kind.STRING),
    Field(name="n", kind=Kind.INTEGER, min=1, max=10, default=1),
    Field(name="size", kind=Kind.STRING),
    _choice("response_format", "url", "b64_json"),
    Field(name="quality", kind=Kind.STRING, choices=QUALITIES, default=AUTO),
    _choice("style", "vivid", "natural"),
    _choice("background", "auto", "transparent", "opaque"),
    _choice("moderation", "auto", "low"),
    _choice("output_format", "png", "jpeg", "webp"),
    Field(name="output_compression", kind=Kind.INTEGER, min=0, max=100, default=100),
    Field(name="stream", kind=Kind.BOOLEAN, default=False),
    Field(name="partial_images", kind=Kind.INTEGER, min=0, max=3, default=0),
    _choice("input_fidelity", "high", "low"),
    # What clients pass in `extra_body`.
    Field(name="seed", kind=Kind.INTEGER, min=-1),
    Field(name="steps", kind=Kind.INTEGER, min=1),
    Field(name="num_inference_steps", kind=Kind.INTEGER, min=1),
    Field(name="guidance", kind=Kind.NUMBER, min=0),
    Field(name="guidance_scale", kind=Kind.NUMBER, min=0),
    Field(name="negative_prompt", kind=Kind.STRING),
    Field(name="aspect_ratio", kind=Kind.STRING),
    Field(name="width", kind=Kind.INTEGER, min=1),
    Field(name="height", kind=Kind.INTEGER, min=1),
    Field(name="strength", kind=Kind.NUMBER, min=0, max=1),
    Field(name="loras", kind=Kind.ARRAY),
    Field(name="safety_tolerance", kind=Kind.INTEGER, min=0, max=6),
)
# The core's names of fields, and what says them here: of several that were said, the first counts.
SAID_BY: Mapping[str, Sequence[str]] = {
    "num_steps": ("steps", "num_inference_steps"),
    "guidance": ("guidance", "guidance_scale"),
    "width": ("width", "size"),
    "height": ("height", "size"),
    "aspect_ratio": ("size", "aspect_ratio"),
    "num_outputs": ("n",),
    "output_quality": ("output_compression",),
}
KNOWN = frozenset(known.name for known in FIELDS)
_PICTURE = re.compile(r"image(\[\d*\])?|images(\[\d*\])?|input_image(_\d{1,2})?")


@dataclass(slots=True, kw_only=True)
class Pictures:
    """What came with a body; `images` in the order they were given, by the name of their field."""

    name: str = "image"  # the field that pictures came in, for what is wrong with all of them
    images: list[tuple[str, Source]] = field(default_factory=list)
    mask: Source | None = None
    urls: dict[str, JSON] = field(default_factory=dict)  # those given as URLs, for the record


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A checked body without its pictures."""

    values: Mapping[str, JSON]
    width: int | None  # px
    height: int | None
    ratio: str | None
    loras: tuple[LoraRef, ...]
    said: Mapping[str, JSON]  # as received

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        return value if isinstance(value, str) else None

    def whole(self, *names: str) -> int | None:
        """The first of the fields that was said."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    def number(self, *names: str) -> float | None:
        for name in names:
            value = self.values.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return None

    def flag(self, name: str) -> bool:
        return self.values.get(name) is True


def pictures_in(body: dict[str, JSON]) -> Pictures:
    """Take the pictures out of a JSON body, so that nothing else holds them; InvalidRequest.

    `image`, `images` and `input_image` (also `_2`, `_3`...) hold a text, {"image_url": text} or a
    list of either; `mask` holds one.
    """
    found = Pictures()
    is_ours = [name for name in body if name in ("image", "images") or _is_input(name)]
    names = sorted(is_ours, key=_order)
    found.name = next(iter(names), found.name)
    for name in names:
        value = body.pop(name)
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        is_list = items is value
        for position, item in enumerate(items):
            where = f"{name}.{position}" if is_list else name
            if not is_list and (item is None or item == ""):
                continue
            if len(found.images) == PICTURES_MAX:
                raise _wrong(name, f"at most {PICTURES_MAX} pictures", Rule.MAX_ITEMS)
            text = _text_of(item, where)
            found.images.append((where, text))
            if is_url(text):
                found.urls[where] = text
    mask = body.pop("mask", None)
    if mask is not None and mask != "":
        found.mask = _text_of(mask, "mask")
        if is_url(found.mask):
            found.urls["mask"] = found.mask
    return found


def is_picture(name: str) -> bool:
    """Whether a part of a form is an input picture: image, image[], image[0], images..."""
    return _PICTURE.fullmatch(name) is not None


def is_url(text: str) -> bool:
    return text.strip()[:8].lower().startswith(("http://", "https://"))


def read(body: Mapping[str, JSON]) -> Asked:
    """Everything but the pictures. Numbers and flags may be strings; InvalidRequest."""
    said = {name: value for name, value in body.items() if value is not None and value != ""}
    checked = check(FIELDS, said, lenient=True)
    problems = list(checked.problems)
    values = checked.values
    wrong = {problem.field.partition(".")[0] for problem in problems}
    if "prompt" not in wrong and not str(values["prompt"] or "").strip():
        problems.append(Problem(field="prompt", rule=Rule.REQUIRED, message="prompt is required"))
    if values.get("background") == "transparent":
        problems.append(
            _problem("background", "transparent pictures are not made here: use opaque or auto")
        )
    if values.get("stream") and values.get("n") not in (None, 1):
        problems.append(_problem("n", "a stream makes one picture: n must be 1"))
    width, height, ratio = _shape(values, problems)
    loras = _loras(values.get("loras"), problems)
    if problems:
        raise InvalidRequest.of(problems)
    return Asked(
        values=values,
        width=width,
        height=height,
        ratio=ratio,
        loras=loras,
        said={name: value for name, value in said.items() if name in KNOWN and name != "model"},
    )


def in_said_words(asked: Asked, pictures: Pictures, error: InvalidRequest) -> InvalidRequest:
    """The core's problems, each by the field that said what it is about."""

    def told(problem: Problem) -> Problem:
        if problem.field == "images":
            return replace(problem, field=pictures.name)
        names = SAID_BY.get(problem.field, (problem.field,))
        said = (name for name in names if _is_said(asked.said.get(name)))
        return replace(problem, field=next(said, names[0]))

    return error.retold(told)


def digest(asked: Asked, model: str, pictures: Pictures) -> str:
    """SHA-256 of all that was asked, however it was wrapped: the same for a repeated request."""
    mac = hashlib.sha256(json.dumps([model, asked.values], sort_keys=True).encode())
    for name, source in [*pictures.images, ("mask", pictures.mask or b"")]:
        data = source.encode() if isinstance(source, str) else source
        mac.update(f"\n{name.partition('[')[0]} {len(data)}\n".encode())
        mac.update(data)
    return mac.hexdigest()


def _shape(
    values: Mapping[str, JSON], problems: list[Problem]
) -> tuple[int | None, int | None, str | None]:
    """Width, height, ratio. Width and height of their own go before `size`."""
    width, height, ratio = values.get("width"), values.get("height"), values.get("aspect_ratio")
    if isinstance(width, int) or isinstance(height, int):
        return (
            width if isinstance(width, int) else None,
            height if isinstance(height, int) else None,
            None,
        )
    shape = ratio if isinstance(ratio, str) else None
    text = values.get("size")
    if not isinstance(text, str) or text.strip().lower() == AUTO:
        return None, None, shape
    if size := parse_size(text):
        return size.width, size.height, None
    if parse_ratio(text):
        return None, None, text.replace(" ", "")
    words = f"{text[:40]!r} is none: use WIDTHxHEIGHT, a ratio such as 16:9, or auto"
    problems.append(_problem("size", words))
    return None, None, None


def _loras(value: JSON, problems: list[Problem]) -> tuple[LoraRef, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    found = []
    for position, item in enumerate(value):
        item = {"path": item} if isinstance(item, str) else item
        path = item.get("path") if isinstance(item, Mapping) else None
        scale = _scale(item.get("scale")) if isinstance(item, Mapping) else None
        where = f"loras.{position}"
        if not isinstance(path, str) or not path.strip():
            problems.append(_problem(where, 'an adapter is {"path": name or URL, "scale": number}'))
        elif scale is None:
            problems.append(_problem(f"{where}.scale", f"a number from 0 to {LORA_SCALE_MAX:g}"))
        else:
            found.append(LoraRef(path=path.strip(), scale=scale))
    return tuple(found)


def _scale(value: JSON) -> float | None:
    if value is None:
        return 1.0
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}(\.\d{1,9})?", value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= LORA_SCALE_MAX else None


def _text_of(item: JSON, where: str) -> str:
    """The text of a picture: itself, or under `image_url` (there also under `url`)."""
    for key in ("image_url", "url"):
        if isinstance(item, Mapping) and key in item:
            item = item[key]
    if isinstance(item, str) and item.strip():
        return item
    if isinstance(item, Mapping) and "file_id" in item:
        raise _wrong(where, "files are not kept here by file_id: send image_url")
    raise _wrong(where, 'a picture is a URL, a data URI or base64, or {"image_url": one of them}')


def _is_said(value: JSON) -> bool:
    return value is not None and not (isinstance(value, str) and value.strip().lower() == AUTO)


def _is_input(name: str) -> bool:
    return name.startswith("input_image") and _PICTURE.fullmatch(name) is not None


def _order(name: str) -> tuple[int, int]:
    """image, images, input_image, input_image_2, ..._10."""
    number = name.removeprefix("input_image").strip("_")
    if name in ("image", "images"):
        return (0, int(name == "images"))
    return (1, int(number or 1))


def _wrong(name: str, message: str, rule: Rule = Rule.OTHER) -> InvalidRequest:
    return InvalidRequest.of([_problem(name, message, rule)])


def _problem(name: str, message: str, rule: Rule = Rule.OTHER) -> Problem:
    return Problem(field=name, rule=rule, message=message)
