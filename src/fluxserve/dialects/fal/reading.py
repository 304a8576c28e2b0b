"""A fal input on its way to our words.

body -> pictures_in()  the texts of its pictures, taken out of the body
     -> read()         everything else, checked
     -> to_params()    our words
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from fluxserve.core.errors import InvalidRequest, Problem, Rule
from fluxserve.core.request import JSON, ImageInput, ImageParams, LoraRef, OutputFormat
from fluxserve.core.schema import check
from fluxserve.core.sizes import Size
from fluxserve.dialects.fal.apps import MATCH_INPUT, SIZES, App, Form

PICTURES_MAX = 16
LORA_SCALE_MAX = 4.0
RATIO_FIELDS = ("aspect_ratio", "resolution_mode")  # the first goes before the second
# Pictures and adapters that an app has no use for are refused; other unknown fields are ignored.
NEVER_IGNORED = ("image_url", "image_urls", "mask_url", "control_image_url", "loras")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A checked input without its pictures."""

    values: Mapping[str, JSON]
    size: Size | None
    ratio: str | None
    ratio_from: str  # the field that said it
    loras: tuple[LoraRef, ...]


def pictures_in(form: Form, body: dict[str, JSON]) -> dict[str, str]:
    """Take the texts of the pictures out of `body`, so that nothing else holds them.

    Names are `image_url`, `image_urls.0`, `image_urls.1`, `mask_url`. InvalidRequest.
    """
    known = {*form.pictures, *(field.name for field in form.fields)}
    problems = [
        _problem(name, "this app does not take it")
        for name in NEVER_IGNORED
        if name not in known and not _is_empty(body.get(name))
    ]
    found: dict[str, str] = {}
    for name in form.pictures:
        value = body.pop(name, None)
        if _is_empty(value):
            continue
        if name != "image_urls":
            found |= _picture(name, value, problems)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) > PICTURES_MAX:
                words = f"at most {PICTURES_MAX} pictures"
                problems.append(_problem(name, words, Rule.MAX_ITEMS))
            for position, item in enumerate(value[:PICTURES_MAX]):
                found |= _picture(f"{name}.{position}", item, problems)
        else:
            problems.append(_problem(name, "a list of pictures is expected"))
    for name in form.pictures:
        is_there = any(key.partition(".")[0] == name for key in found)
        if name in form.needs and not is_there and not problems:
            problems.append(_problem(name, "field required", Rule.REQUIRED))
    if problems:
        raise InvalidRequest.of(problems)
    return found


def read(form: Form, body: Mapping[str, JSON]) -> Asked:
    """The fields of an input without its pictures; unknown ones are ignored. InvalidRequest."""
    checked = check(form.fields, body, lenient=True)
    problems = list(checked.problems)
    values = checked.values
    wrong = {problem.field.partition(".")[0] for problem in problems}
    needs_prompt = "prompt" in form.needs and "prompt" not in wrong
    if needs_prompt and not str(values.get("prompt") or "").strip():
        problems.append(_problem("prompt", "field required", Rule.REQUIRED))
    size = _size(form, body.get("image_size"), problems)
    ratio, ratio_from = _ratio(values)
    loras = _loras(values.get("loras"), problems)
    if problems:
        raise InvalidRequest.of(problems)
    if ratio and body.get("image_size") is None:
        size = None
    return Asked(values=values, size=size, ratio=ratio, ratio_from=ratio_from, loras=loras)


def to_params(app: App, asked: Asked, pictures: Mapping[str, ImageInput]) -> ImageParams:
    """A checked input in our words."""
    values = asked.values
    images = tuple(picture for name, picture in pictures.items() if name != "mask_url")
    tolerance = _as(values, "safety_tolerance", str)
    size = asked.size
    return ImageParams(
        model=app.id,
        prompt=_as(values, "prompt", str),
        negative_prompt=_as(values, "negative_prompt", str),
        images=images,
        mask=pictures.get("mask_url"),
        width=size.width if size else None,
        height=size.height if size else None,
        aspect_ratio=None if size else asked.ratio,
        num_steps=_as(values, "num_inference_steps", int),
        guidance=_as(values, "guidance_scale", float),
        strength=_as(values, "strength", float),
        seed=_as(values, "seed", int),
        num_outputs=_as(values, "num_images", int),
        output_format=OutputFormat(_as(values, "output_format", str) or "jpeg"),
        loras=asked.loras,
        safety_check=_as(values, "enable_safety_checker", bool),
        safety_tolerance=int(tolerance) if tolerance else None,
        raw=_as(values, "raw", bool),
    )


def in_said_words(asked: Asked, error: InvalidRequest) -> InvalidRequest:
    """The same problems; one of the ratio where the caller said the ratio."""

    def told(problem: Problem) -> Problem:
        is_ratio = problem.field in RATIO_FIELDS
        return replace(problem, field=asked.ratio_from) if is_ratio else problem

    return error.retold(told)


def with_previews(params: ImageParams, app: App, count: int) -> ImageParams:
    """The same with about `count` previews on the way."""
    steps = params.num_steps or app.card.num_steps
    return replace(params, preview_steps=math.ceil(steps / (count + 1)))


def _size(form: Form, value: JSON, problems: list[Problem]) -> Size | None:
    """A name of a size, or {"width": px, "height": px}."""
    if value is None:
        return SIZES[form.size] if form.size else None
    if isinstance(value, str) and value in SIZES:
        return SIZES[value]
    if isinstance(value, Mapping):
        width, height = value.get("width"), value.get("height")
        if _is_side(width) and _is_side(height):
            return Size(int(cast("int", width)), int(cast("int", height)))
    names = ", ".join(SIZES)
    words = f'one of {names}, or {{"width": pixels, "height": pixels}}'
    problems.append(_problem("image_size", words))
    return None


def _is_side(value: JSON) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 1 <= cast("float", value) <= 99_999 and int(cast("float", value)) == value


def _ratio(values: Mapping[str, JSON]) -> tuple[str | None, str]:
    """`aspect_ratio`, or what `resolution_mode` says, and which of them said it.

    None: the picture or the model decides.
    """
    for name in RATIO_FIELDS:
        text = values.get(name)
        if isinstance(text, str) and text.strip() and text not in ("auto", MATCH_INPUT):
            return text.replace(" ", ""), name
    return None, RATIO_FIELDS[0]


def _loras(value: JSON, problems: list[Problem]) -> tuple[LoraRef, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    found = []
    for position, item in enumerate(value):
        if not isinstance(item, Mapping):
            continue  # the table has said so already
        path, scale = item.get("path"), item.get("scale")
        scale = 1.0 if scale is None else scale
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not isinstance(path, str) or not path.strip():
            problems.append(_problem(f"loras.{position}.path", "field required", Rule.REQUIRED))
        elif not is_number or not 0 <= cast("float", scale) <= LORA_SCALE_MAX:
            words = f"a number from 0 to {LORA_SCALE_MAX:g}"
            problems.append(_problem(f"loras.{position}.scale", words))
        else:
            found.append(LoraRef(path=path.strip(), scale=float(cast("float", scale))))
    return tuple(found)


def _is_empty(value: JSON) -> bool:
    return value is None or (isinstance(value, str | Sequence) and not value)


def _picture(name: str, value: JSON, problems: list[Problem]) -> dict[str, str]:
    if isinstance(value, Mapping):  # a file object, as uploads are passed on by some
        value = value.get("url")
    if isinstance(value, str) and value.strip():
        return {name: value}
    problems.append(_problem(name, "a URL or a data URI is expected"))
    return {}


def _as(values: Mapping[str, JSON], name: str, kind: type[_T]) -> _T | None:
    """A checked value; its kind is known from the table."""
    return cast("_T | None", values.get(name))


def _problem(name: str, message: str, rule: Rule = Rule.OTHER) -> Problem:
    return Problem(field=name, rule=rule, message=message)
