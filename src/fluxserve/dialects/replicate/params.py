"""Replicate's input as what the core is asked for; pure, with the pictures already taken in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fluxserve.core.errors import InvalidRequest, Problem, Rule
from fluxserve.core.request import (
    JSON,
    MATCH_INPUT,
    ImageInput,
    ImageParams,
    LoraRef,
    Margins,
    OutputFormat,
    Task,
)
from fluxserve.core.schema import Kind, check
from fluxserve.dialects.replicate.inputs import OUTPAINT, Inputs

FORMATS: Mapping[str, OutputFormat] = {
    "webp": OutputFormat.WEBP,
    "jpg": OutputFormat.JPEG,
    "png": OutputFormat.PNG,
}
# Our words for what the caller calls otherwise; the first that the model has is meant.
THEIR_NAMES: Mapping[str, Sequence[str]] = {
    "images": ("input_image", "image_prompt", "image"),
    "num_steps": ("num_inference_steps", "steps"),
    "strength": ("prompt_strength",),
    "margins": ("outpaint",),
    "loras": ("lora_weights",),
}
TOLERANCE_WITH_IMAGE = 2  # the highest that the service lets through with an input picture
PRO_MULTIPLE = 32  # px; custom sides are rounded to it


@dataclass(frozen=True, slots=True)
class Values:
    """Checked input values, read by name and type; what is absent is None."""

    values: Mapping[str, JSON]

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        return value if isinstance(value, str) and value else None

    def whole(self, name: str) -> int | None:
        value = self.values.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and isinstance(value, int | float) else None

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        return value if isinstance(value, bool) else None


def check_input(inputs: Inputs, body: Mapping[str, JSON]) -> Values:
    """The input's known fields with their defaults; InvalidRequest names every bad one."""
    said = body
    if any(_is_blank(inputs, name, value) for name, value in body.items()):
        said = {k: value for k, value in body.items() if not _is_blank(inputs, k, value)}
    checked = check(inputs.fields, said, parent="input")
    problems = list(checked.problems)
    is_growing = checked.values.get("outpaint") not in (None, "None")
    if not is_growing and inputs.field("outpaint") and said.get("mask") is None:
        text = "mask is required"  # or a word for outpaint
        problems.append(Problem(field="input", rule=Rule.REQUIRED, message=text))
    if problems:
        raise InvalidRequest.of(problems)
    return Values(checked.values)


def _is_blank(inputs: Inputs, name: str, value: JSON) -> bool:
    """Whether a required text was left empty, which is as good as not given."""
    if not isinstance(value, str) or (value and not value.isspace()):
        return False
    field = inputs.field(name)
    return field is not None and field.required and field.kind is Kind.STRING


def to_params(
    model: str, inputs: Inputs, values: Values, pictures: Mapping[str, Sequence[ImageInput]]
) -> ImageParams:
    """`pictures` holds what the picture fields of the input became, by field name."""
    mask: ImageInput | None = None
    images: tuple[ImageInput, ...] = ()
    if pictures:
        mask = next(iter(pictures.get("mask", ())), None)
        given = [found for name, found in pictures.items() if name != "mask"]
        images = tuple(image for found in given for image in found)
    seed = values.whole("seed")
    if seed == 0 and inputs.zero_seed_is_random:
        seed = None
    safety_off = values.flag("disable_safety_checker")
    task, strength = None, None
    if images and inputs.field("prompt_strength"):
        task, strength = Task.IMAGE_TO_IMAGE, values.number("prompt_strength")
    if images and inputs.field("image_prompt_strength"):
        strength = values.number("image_prompt_strength")
    shape = _shape(task, values)
    params = ImageParams(
        model=model,
        prompt=values.text("prompt"),
        images=images,
        mask=mask,
        task=task,
        width=shape.width,
        height=shape.height,
        aspect_ratio=shape.aspect_ratio,
        megapixels=shape.megapixels,
        num_steps=_first(values.whole("num_inference_steps"), values.whole("steps")),
        guidance=values.number("guidance"),
        strength=strength,
        seed=None if seed is None else seed & 0xFFFFFFFF,
        num_outputs=values.whole("num_outputs"),
        output_format=FORMATS.get(values.text("output_format") or ""),
        output_quality=values.whole("output_quality"),
        go_fast=values.flag("go_fast"),
        prompt_upsampling=values.flag("prompt_upsampling"),
        safety_check=None if safety_off is None else not safety_off,
        safety_tolerance=_tolerance(values, bool(images)),
        raw=values.flag("raw"),
        loras=_loras(values),
    )
    return _outpainted(params, values)


def in_their_words(error: InvalidRequest, inputs: Inputs) -> InvalidRequest:
    """What the catalog found, under the names that this model's callers use."""
    return InvalidRequest.of(
        [
            replace(
                problem, field=_their_field(problem, inputs), message=_their_text(problem, inputs)
            )
            for problem in error.problems
        ]
        or [Problem(field="input", rule=Rule.OTHER, message=error.message)]
    )


def _their_name(field: str, inputs: Inputs) -> str:
    return next((name for name in THEIR_NAMES.get(field, ()) if inputs.field(name)), field)


def _their_field(problem: Problem, inputs: Inputs) -> str:
    if problem.rule is Rule.REQUIRED or not problem.field:
        return "input"
    if problem.field == "input" or problem.field.startswith("input."):
        return problem.field
    return f"input.{_their_name(problem.field, inputs)}"


def _their_text(problem: Problem, inputs: Inputs) -> str:
    if problem.rule is Rule.REQUIRED and problem.field:
        return f"{_their_name(problem.field, inputs)} is required"
    return problem.message


def _first(one: int | None, other: int | None) -> int | None:
    return other if one is None else one


def _tolerance(values: Values, has_image: bool) -> int | None:
    tolerance = values.whole("safety_tolerance")
    if tolerance is None:
        return None
    return min(tolerance, TOLERANCE_WITH_IMAGE) if has_image else tolerance


class _Shape(NamedTuple):
    """What the caller said about the size."""

    width: int | None = None  # px
    height: int | None = None  # px
    aspect_ratio: str | None = None
    megapixels: float | None = None


def _shape(task: Task | None, values: Values) -> _Shape:
    """The size: a named ratio, custom sides, or the shape of the input picture."""
    if task is Task.IMAGE_TO_IMAGE:
        return _Shape(aspect_ratio=MATCH_INPUT)
    ratio = values.text("aspect_ratio")
    if ratio == "custom":
        sides = [values.whole("width"), values.whole("height")]
        width, height = (side and max(32, round(side / 32) * 32) for side in sides)
        return _Shape(width, height)
    megapixels = values.text("megapixels")
    if megapixels is not None and megapixels != "1":
        return _Shape(aspect_ratio=ratio, megapixels=float(megapixels))
    return _Shape(aspect_ratio=ratio)


def _loras(values: Values) -> tuple[LoraRef, ...]:
    named = (("lora_weights", "lora_scale"), ("extra_lora", "extra_lora_scale"))
    return tuple(
        LoraRef(path=path, scale=_scale(values, scale))
        for name, scale in named
        if (path := values.text(name))
    )


def _scale(values: Values, name: str) -> float:
    scale = values.number(name)
    return 1.0 if scale is None else scale


def _outpainted(params: ImageParams, values: Values) -> ImageParams:
    """Margins for `outpaint`; the first picture must be stored already."""
    shares = OUTPAINT.get(values.text("outpaint") or "None")
    if shares is None:
        return params
    blob = params.images[0].blob
    assert blob is not None, "the picture of an outpaint is taken in first"
    width, height = blob.width, blob.height
    left, right, top, bottom = shares
    margins = Margins(
        left=round(width * left),
        right=round(width * right),
        top=round(height * top),
        bottom=round(height * bottom),
    )
    if not any(shares):  # make it square: the shorter side grows at both ends
        across, down = max(height - width, 0), max(width - height, 0)
        margins = Margins(
            left=across // 2, right=across - across // 2, top=down // 2, bottom=down - down // 2
        )
    return replace(params, margins=margins, mask=None, task=Task.EXPAND)
