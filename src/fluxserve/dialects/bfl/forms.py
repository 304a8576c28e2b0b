"""What each BFL endpoint takes: its fields, its pictures, and what they mean to us.

    body -> pictures_in()  the texts of its pictures, taken out of the body
         -> read()         everything else, checked
         -> to_params()    our words

Ranges and defaults are those of the service's published description.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar, cast

from fluxserve.core.errors import Problem, Rule
from fluxserve.core.request import (
    JSON,
    ImageInput,
    ImageParams,
    Margins,
    OutputFormat,
    Task,
)
from fluxserve.core.schema import Checked, Field, Kind, check

# ComfyUI sends seeds up to 2**64 - 1; bounds are compared as floats, where that is 2**64. The core
# keeps the lower 32 bits.
SEED_MAX = 2**64
WEBHOOK_URL_MAX = 2083
MULTIPLE = 32  # px, sides of FLUX.1 sizes
FILL_SIDE_MIN = 256  # px, pictures to fill and to expand
DEFAULT_SIZE = (1024, 768)  # px, width and height where only sizes shape the picture
ULTRA_RATIO = "16:9"
PICTURES_MAX = 10  # the highest number that clients put behind `input_image_`

# Beside pictures, the fields that user interfaces send as "" when nothing was said.
EMPTY_IS_ABSENT = ("webhook_url", "webhook_secret", "aspect_ratio", "output_format")

THEIR_NAMES = {"num_steps": "steps", "strength": "image_prompt_strength", "margins": "top"}

_T = TypeVar("_T")


class Shape(StrEnum):
    """What decides the size of the result."""

    SIZES = "sizes"  # width and height; a ratio only where neither is given
    RATIO = "ratio"  # the ratio; sizes are not read
    EITHER = "either"  # the ratio, else sizes, else the first picture
    PICTURE = "picture"  # the picture that is worked on


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One endpoint's body. `pictures` are the names of its picture fields, in order."""

    fields: tuple[Field, ...]
    pictures: tuple[str, ...]
    shape: Shape
    task: Task | None = None  # None: whatever the card makes of the pictures
    needs_prompt: bool = False  # it must be there
    output_format: OutputFormat = OutputFormat.JPEG
    multiple: int = 1  # px that sides must be multiples of
    raw: bool = False  # what `raw` is where nothing was said


def _integer(name: str, low: int, high: int, default: int | None = None) -> Field:
    return Field(name=name, kind=Kind.INTEGER, min=low, max=high, default=default)


def _number(name: str, low: float, high: float, default: float | None = None) -> Field:
    return Field(name=name, kind=Kind.NUMBER, min=low, max=high, default=default)


COMMON = (
    Field(name="prompt", kind=Kind.STRING),
    _integer("seed", -1, SEED_MAX),
    _integer("safety_tolerance", 0, 6, 2),
    Field(name="output_format", kind=Kind.STRING, choices=("jpeg", "png", "webp", "jpg")),
    Field(name="prompt_upsampling", kind=Kind.BOOLEAN),
    Field(name="webhook_url", kind=Kind.STRING, max_length=WEBHOOK_URL_MAX),
    Field(name="webhook_secret", kind=Kind.STRING),
)
RATIO = (Field(name="aspect_ratio", kind=Kind.STRING),)
SIZES = (_integer("width", 256, 1440), _integer("height", 256, 1440))
FINE = (_integer("steps", 15, 50, 50), _number("guidance", 1.5, 100, 60.0))
MARGINS = tuple(_integer(side, 0, 2048, 0) for side in ("top", "bottom", "left", "right"))
NUMBERED = ("input_image", *(f"input_image_{n}" for n in range(2, PICTURES_MAX + 1)))
EVERY_PICTURE = ("image", "mask", "image_prompt", *NUMBERED)


def _sized(*own: Field) -> Form:
    return Form(
        fields=(*COMMON, *RATIO, *SIZES, *own),
        pictures=("image_prompt",),
        shape=Shape.SIZES,
        multiple=MULTIPLE,
    )


PLAIN = _sized()
DEV = _sized(_integer("steps", 1, 50, 28), _number("guidance", 1.5, 5, 3.0))
PRO = _sized(
    _integer("steps", 1, 50, 40), _number("guidance", 1.5, 5, 2.5), _integer("interval", 1, 4)
)
SCHNELL = _sized(_integer("steps", 1, 50), _number("guidance", 1.5, 5))
ULTRA = Form(
    fields=(
        *COMMON,
        *RATIO,
        Field(name="raw", kind=Kind.BOOLEAN),
        _number("image_prompt_strength", 0, 1, 0.1),
    ),
    pictures=("image_prompt",),
    shape=Shape.RATIO,
)
ULTRA_RAW = Form(fields=ULTRA.fields, pictures=ULTRA.pictures, shape=Shape.RATIO, raw=True)
FILL = Form(
    fields=(*COMMON, *FINE), pictures=("image", "mask"), shape=Shape.PICTURE, task=Task.FILL
)
EXPAND = Form(
    fields=(*COMMON, *FINE, *MARGINS),
    pictures=("image",),
    shape=Shape.PICTURE,
    task=Task.EXPAND,
)
KONTEXT = Form(
    fields=(*COMMON, *RATIO),
    pictures=NUMBERED,
    shape=Shape.RATIO,
    needs_prompt=True,
    output_format=OutputFormat.PNG,
)
# Our own models under BFL's rules, with the knobs that a local model has besides.
LOCAL = Form(
    fields=(
        *COMMON,
        *RATIO,
        _integer("width", 0, 4096),
        _integer("height", 0, 4096),
        _integer("steps", 1, 100),
        _number("guidance", 0, 20),
    ),
    pictures=NUMBERED,
    shape=Shape.EITHER,
    needs_prompt=True,
    output_format=OutputFormat.PNG,
)
FLUX2 = Form(
    fields=(
        *COMMON,
        _integer("width", 0, 4096),
        _integer("height", 0, 4096),
        _integer("steps", 1, 50),
        _number("guidance", 1.5, 10),
    ),
    pictures=NUMBERED,
    shape=Shape.EITHER,
    needs_prompt=True,
)

FORMS: Mapping[str, Form] = {
    "flux-dev": DEV,
    "flux-schnell": SCHNELL,
    "flux-pro": PRO,
    "flux-pro-1.1": PLAIN,
    "flux-pro-1.1-ultra": ULTRA,
    "flux-pro-1.1-raw": ULTRA_RAW,
    "flux-pro-1.0-fill": FILL,
    "flux-fill": FILL,
    "flux-pro-1.0-expand": EXPAND,
    "flux-kontext": KONTEXT,
    "flux-kontext-pro": KONTEXT,
    "flux-kontext-max": KONTEXT,
}


def form_of(name: str) -> Form:
    """The form of an endpoint; a model that BFL does not have gets the one of our own models."""
    known = FORMS.get(name)
    if known:
        return known
    return FLUX2 if name.startswith("flux-2-") else LOCAL


def pictures_in(form: Form, body: dict[str, JSON]) -> tuple[dict[str, str], list[Problem]]:
    """Take the texts of the pictures out of `body`, by the names they came under.

    Nothing else holds them then. A picture that this endpoint has no use for is a problem, never
    dropped.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for name in dict.fromkeys((*form.pictures, *EVERY_PICTURE)):
        value = body.pop(name, None)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        ours = own_name(form, name)
        if not isinstance(value, str):
            words = "a picture is a text: base64, a data URI or a URL"
            wrong = Problem(field=name, rule=Rule.TYPE, message=words, expected="string")
            problems.append(wrong)
        elif ours not in form.pictures:
            known = ", ".join(form.pictures[:4])
            words = f"this model does not take it; its pictures are {known}"
            problems.append(Problem(field=name, rule=Rule.OTHER, message=words))
        elif name == ours or ours not in found:
            found[name] = value
    return found, problems


def own_name(form: Form, name: str) -> str:
    """`input_image` stands for `image` where one is worked on, as several clients have it."""
    is_alias = form.shape is Shape.PICTURE and name == "input_image"
    return "image" if is_alias else name


def read(form: Form, body: Mapping[str, JSON]) -> Checked:
    """The fields of a body without its pictures; unknown ones are ignored, as the service does."""
    said = {name: value for name, value in body.items() if not _is_empty(name, value)}
    checked = check(form.fields, said, lenient=True)
    problems = list(checked.problems)
    names = {problem.field for problem in problems}
    if form.needs_prompt and said.get("prompt") is None:
        words = "prompt is required"
        problems.append(Problem(field="prompt", rule=Rule.REQUIRED, message=words))
    for name in ("width", "height"):
        side = checked.values.get(name)
        if isinstance(side, int) and name not in names and side % form.multiple:
            problems.append(multiple_of(name, form.multiple))
    sides = [checked.values.get(side.name) for side in MARGINS]
    if form.task is Task.EXPAND and not problems and not any(sides):
        words = "at least one of top, bottom, left and right must be greater than 0"
        problems.append(Problem(field="top", rule=Rule.OTHER, message=words))
    return Checked(checked.values, tuple(problems))


def _is_empty(name: str, value: JSON) -> bool:
    return name in EMPTY_IS_ABSENT and isinstance(value, str) and not value.strip()


def multiple_of(name: str, multiple: int) -> Problem:
    words = f"Input should be a multiple of {multiple}"
    return Problem(
        field=name, rule=Rule.OTHER, message=words, limit=multiple, expected="multiple_of"
    )


def judge_pictures(form: Form, pictures: Mapping[str, ImageInput]) -> list[Problem]:
    """What can be said of stored pictures: enough of them, big enough, mask as its picture."""
    if form.shape is not Shape.PICTURE:
        return []
    image = pictures.get("image")
    if image is None:
        return [Problem(field="image", rule=Rule.REQUIRED, message="image is required")]
    problems = []
    blob = image.blob
    if blob and min(blob.width, blob.height) < FILL_SIDE_MIN:
        words = f"at least {FILL_SIDE_MIN} x {FILL_SIDE_MIN} px, not {blob.width} x {blob.height}"
        name = image.field_name or "image"
        problems.append(Problem(field=name, rule=Rule.OTHER, message=words))
    mask = pictures["mask"].blob if "mask" in pictures else None
    if blob and mask and (blob.width, blob.height) != (mask.width, mask.height):
        words = (
            f"the mask must be as large as the image: {blob.width} x {blob.height} px, "
            f"not {mask.width} x {mask.height}"
        )
        problems.append(Problem(field="mask", rule=Rule.OTHER, message=words))
    return problems


def to_params(
    name: str,
    form: Form,
    values: Mapping[str, JSON],
    pictures: Mapping[str, ImageInput],
) -> ImageParams:
    """A checked body in our words."""
    images = tuple(pictures[key] for key in form.pictures if key in pictures and key != "mask")
    width, height, ratio = _shape(form, values)
    word = _as(values, "output_format", str)
    task = Task.REDUX if "image_prompt" in pictures else form.task
    raw = _as(values, "raw", bool)
    return ImageParams(
        model=name,
        prompt=_as(values, "prompt", str),
        images=images,
        mask=pictures.get("mask"),
        task=task,
        width=width,
        height=height,
        aspect_ratio=ratio,
        num_steps=_as(values, "steps", int),
        guidance=_as(values, "guidance", float),
        strength=_as(values, "image_prompt_strength", float),
        seed=_as(values, "seed", int),
        output_format=_format(word) if word else form.output_format,
        margins=_margins(values) if form.task is Task.EXPAND else None,
        prompt_upsampling=_as(values, "prompt_upsampling", bool),
        safety_tolerance=_as(values, "safety_tolerance", int),
        raw=form.raw if raw is None else raw,
    )


def _shape(form: Form, values: Mapping[str, JSON]) -> tuple[int | None, int | None, str | None]:
    """Width, height and ratio as the endpoint reads them; 0 stands for: not said."""
    ratio = _as(values, "aspect_ratio", str)
    width = _as(values, "width", int) or None
    height = _as(values, "height", int) or None
    match form.shape:
        case Shape.SIZES:
            if width is None and height is None and ratio:
                return None, None, ratio
            return width or DEFAULT_SIZE[0], height or DEFAULT_SIZE[1], None
        case Shape.RATIO:
            return None, None, ratio or (ULTRA_RATIO if "image_prompt" in form.pictures else None)
        case Shape.EITHER:
            return (None, None, ratio) if ratio else (width, height, None)
        case Shape.PICTURE:
            return None, None, None


def _format(word: str) -> OutputFormat:
    return OutputFormat.JPEG if word == "jpg" else OutputFormat(word)


def _margins(values: Mapping[str, JSON]) -> Margins:
    top, bottom, left, right = (_as(values, field.name, int) or 0 for field in MARGINS)
    return Margins(top=top, bottom=bottom, left=left, right=right)


def _as(values: Mapping[str, JSON], name: str, kind: type[_T]) -> _T | None:
    """A checked value; its kind is known from the table."""
    return cast("_T | None", values.get(name))


def renamed(
    form: Form, problems: Sequence[Problem], pictures: Mapping[str, ImageInput]
) -> list[Problem]:
    """The core's problems under the names of this endpoint's fields, as they were sent."""
    return [replace(problem, field=_their_name(form, problem, pictures)) for problem in problems]


def _their_name(form: Form, problem: Problem, pictures: Mapping[str, ImageInput]) -> str:
    if problem.field != "images":
        return THEIR_NAMES.get(problem.field, problem.field)
    if problem.rule is Rule.MAX_ITEMS and problem.limit is not None:
        return form.pictures[min(int(problem.limit), len(form.pictures) - 1)]
    first = form.pictures[0]
    sent = pictures.get(first)
    return (sent and sent.field_name) or first
