"""A WaveSpeed body on its way to our words.

body -> pictures_in()  the texts of its pictures, taken out of the body
     -> read()         everything else, checked
     -> to_params()    our words
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast

from fluxserve.core.errors import Problem, Rule
from fluxserve.core.request import JSON, ImageInput, ImageParams, LoraRef, OutputFormat
from fluxserve.core.schema import Checked, check
from fluxserve.core.sizes import parse_size
from fluxserve.dialects.wavespeed.forms import Form, Model

LORA_SCALE_MAX = 4.0
PICTURES_MAX = 16  # looked at before the card says how many there may be
# The core's names of fields, and WaveSpeed's.
THEIR_NAMES = {
    "num_steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "mask": "mask_image",
    "width": "size",
    "height": "size",
    "num_outputs": "num_images",
    "megapixels": "size",
}

# Pictures and adapters that a model has no use for are refused; other unknown fields are ignored.
NEVER_IGNORED = ("image", "images", "mask_image", "control_image", "loras")

_T = TypeVar("_T")


def pictures_in(form: Form, body: dict[str, JSON]) -> tuple[dict[str, str], list[Problem]]:
    """Take the texts of the pictures out of `body`, so that nothing else holds them.

    Names are `image`, `images.0`, `images.1`, `mask_image`. A picture or adapter that this model
    has no use for is a problem, never dropped.
    """
    problems: list[Problem] = []
    known = {field.name for field in form.fields}
    for name in NEVER_IGNORED:
        is_foreign = name not in form.pictures and name not in known
        if is_foreign and not _is_empty(body.get(name)):
            words = "this model does not take it"
            problems.append(Problem(field=name, rule=Rule.OTHER, message=words))
    found: dict[str, str] = {}
    for name in form.pictures:
        value = body.pop(name, None)
        if _is_empty(value):
            continue
        if name != "images":
            found |= _picture(name, value, problems)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for position, item in enumerate(value[:PICTURES_MAX]):
                found |= _picture(f"images.{position}", item, problems)
        else:
            words = "a list of pictures"
            problems.append(Problem(field=name, rule=Rule.TYPE, message=words, expected="array"))
    return found, problems


def _picture(name: str, value: JSON, problems: list[Problem]) -> dict[str, str]:
    if isinstance(value, str) and value.strip():
        return {name: value}
    words = "a picture is a text: a URL, a data URI or base64"
    problems.append(Problem(field=name, rule=Rule.TYPE, message=words, expected="string"))
    return {}


def _is_empty(value: JSON) -> bool:
    return value is None or (isinstance(value, str | Sequence) and not value)


def read(form: Form, body: Mapping[str, JSON], pictures: Mapping[str, str]) -> Checked:
    """The fields of a body without its pictures; unknown ones are ignored, as the service does."""
    said = {name: value for name, value in body.items() if value != "" or name == "prompt"}
    checked = check(form.fields, said, lenient=True)
    problems = list(checked.problems)
    wrong = {problem.field for problem in problems}
    problems += [
        Problem(field=name, rule=Rule.REQUIRED, message=f"{name} is required")
        for name in form.needs
        if name not in wrong and not _is_there(name, said, pictures)
    ]
    problems += _judge_size(form, checked.values.get("size"))
    if "loras" not in wrong:
        problems += _judge_loras(checked.values.get("loras"))
    return Checked(checked.values, tuple(problems))


def _is_there(name: str, said: Mapping[str, JSON], pictures: Mapping[str, str]) -> bool:
    if name in ("image", "images"):  # one picture or several: either will do
        return any(key.partition(".")[0] in ("image", "images") for key in pictures)
    return bool(str(said.get(name) or "").strip())


def _judge_size(form: Form, text: JSON) -> list[Problem]:
    if not isinstance(text, str):
        return []
    size, (low, high) = parse_size(text), form.side
    if size and low <= min(size.width, size.height) and max(size.width, size.height) <= high:
        return []
    words = f"must be between {low} and {high} per dimension"
    if size is None:
        words = f"must be width*height, such as 1024*1024, between {low} and {high} per dimension"
    return [Problem(field="size", rule=Rule.OTHER, message=words)]


def _judge_loras(loras: JSON) -> list[Problem]:
    if not isinstance(loras, Sequence) or isinstance(loras, str):
        return []
    for position, item in enumerate(loras):
        assert isinstance(item, Mapping), "the table says so"
        path, scale = item.get("path"), _scale(item)
        where = f"loras.{position}"
        if not isinstance(path, str) or not path.strip():
            words = "the name or URL of an adapter is required"
            return [Problem(field=f"{where}.path", rule=Rule.REQUIRED, message=words)]
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not is_number or not 0 <= cast("float", scale) <= LORA_SCALE_MAX:
            words = f"must be a number from 0 to {LORA_SCALE_MAX:g}"
            return [Problem(field=f"{where}.scale", rule=Rule.OTHER, message=words)]
    return []


def to_params(
    model: Model, values: Mapping[str, JSON], pictures: Mapping[str, ImageInput]
) -> ImageParams:
    """A checked body in our words."""
    form = model.form
    images = tuple(picture for name, picture in pictures.items() if name != "mask_image")
    width, height, ratio = _shape(form, values, has_pictures=bool(images))
    tolerance = _as(values, "safety_tolerance", str)
    return ImageParams(
        model=model.id,
        prompt=_as(values, "prompt", str),
        images=images,
        mask=pictures.get("mask_image"),
        width=width,
        height=height,
        aspect_ratio=ratio,
        num_steps=_as(values, "num_inference_steps", int),
        guidance=_as(values, "guidance_scale", float),
        strength=_as(values, "strength", float),
        seed=_as(values, "seed", int),
        num_outputs=_as(values, "num_images", int),
        output_format=OutputFormat(_as(values, "output_format", str) or "jpeg"),
        loras=_loras(values.get("loras")),
        go_fast=True if model.id.endswith("ultra-fast") else None,
        safety_check=_as(values, "enable_safety_checker", bool),
        safety_tolerance=int(tolerance) if tolerance else None,
    )


def _shape(
    form: Form, values: Mapping[str, JSON], *, has_pictures: bool
) -> tuple[int | None, int | None, str | None]:
    """Width, height and ratio; a size goes before a ratio."""
    if size := parse_size(_as(values, "size", str) or ""):
        return size.width, size.height, None
    if ratio := _as(values, "aspect_ratio", str):
        return None, None, ratio
    if form.size:
        return *form.size, None
    return None, None, None if has_pictures else form.ratio


def _loras(loras: JSON) -> tuple[LoraRef, ...]:
    if not isinstance(loras, Sequence) or isinstance(loras, str):
        return ()
    items = [item for item in loras if isinstance(item, Mapping)]
    return tuple(
        LoraRef(path=str(item["path"]).strip(), scale=float(cast("float", _scale(item))))
        for item in items
    )


def _scale(lora: Mapping[str, JSON]) -> JSON:
    """How strongly an adapter counts; null is the same as absent."""
    scale = lora.get("scale")
    return 1.0 if scale is None else scale


def _as(values: Mapping[str, JSON], name: str, kind: type[_T]) -> _T | None:
    """A checked value; its kind is known from the table."""
    return cast("_T | None", values.get(name))


def renamed(form: Form, problems: Sequence[Problem]) -> list[Problem]:
    """The core's problems under the names of this model's fields."""
    many = "images" if "images" in form.needs else "image"
    return [
        replace(problem, field=many if problem.field == "images" else _theirs(problem.field))
        for problem in problems
    ]


def _theirs(name: str) -> str:
    return THEIR_NAMES.get(name, name)
