"""Requests in the providers' own input fields: one table per family of models and kind."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

from fluxserve.core.request import JSON, ImageRequest, OutputFormat, Task
from fluxserve.core.sizes import KONTEXT_SIZES, Size, nearest, parse_ratio
from fluxserve.engines.upstream.answers import Order
from fluxserve.engines.upstream.channel import ChannelKind, ChannelSpec

RATIO_TOLERANCE = 0.09  # natural logarithm: 800 x 1328 is still called 9:16


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The input fields of some models at one kind of provider. Empty: no such field."""

    plain: Mapping[str, str] = field(default_factory=dict)  # our attribute -> their field
    ratios: tuple[str, ...] = ()  # values of aspect_ratio
    any_ratio: bool = False  # aspect_ratio takes any W:H
    match: str | None = None  # the aspect_ratio that means "as the input picture"
    size: str = ""  # "sides": width and height; "W*H" or "WxH": one field named size
    custom_ratio: bool = False  # width and height count only with aspect_ratio "custom"
    side_multiple: int = 1  # px
    formats: Mapping[OutputFormat, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()  # fields of the input pictures, in order
    image_list: str = ""  # one field with all of them, where there is more than one
    mask: str = ""
    outputs: str = ""  # field of the number of pictures
    outputs_max: int = 1
    checker_off: str = ""  # a switch that turns their safety checker off
    checker_on: str = ""  # a switch that turns it on


ALL = {OutputFormat.PNG: "png", OutputFormat.JPEG: "jpeg", OutputFormat.WEBP: "webp"}
JPG = {OutputFormat.PNG: "png", OutputFormat.JPEG: "jpg", OutputFormat.WEBP: "webp"}
TWO = {OutputFormat.PNG: "png", OutputFormat.JPEG: "jpg"}
DEV_RATIOS = ("1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21")
PRO_RATIOS = (*DEV_RATIOS, "2:1", "1:2")
WAVESPEED_RATIOS = ("21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21")
STEPS = {"num_steps": "num_inference_steps", "guidance": "guidance"}
BFL_TEXT = {
    "safety_tolerance": "safety_tolerance",
    "prompt_upsampling": "prompt_upsampling",
}
WAVESPEED_STEPS = {"num_steps": "num_inference_steps", "guidance": "guidance_scale"}

_REPLICATE: Mapping[str, Words] = {
    "*flux-kontext-dev*": Words(
        plain=STEPS | {"go_fast": "go_fast", "output_quality": "output_quality"},
        ratios=DEV_RATIOS,
        match="match_input_image",
        formats=JPG,
        images=("input_image",),
        checker_off="disable_safety_checker",
    ),
    "*flux-kontext-*": Words(
        plain=BFL_TEXT,
        ratios=PRO_RATIOS,
        match="match_input_image",
        formats=TWO,
        images=("input_image",),
    ),
    "*flux-pro": Words(
        plain=BFL_TEXT
        | {"num_steps": "steps", "guidance": "guidance", "output_quality": "output_quality"},
        size="sides",
        custom_ratio=True,
        side_multiple=32,
        formats=JPG,
        images=("image_prompt",),
    ),
    "*flux-1.1-pro*": Words(
        plain=BFL_TEXT | {"output_quality": "output_quality"},
        ratios=DEV_RATIOS,
        formats=JPG,
        images=("image_prompt",),
    ),
    "*flux-fill-*": Words(
        plain=STEPS,
        formats=JPG,
        images=("image",),
        mask="mask",
        outputs="num_outputs",
        outputs_max=4,
    ),
    "*flux-schnell*": Words(
        plain={
            "num_steps": "num_inference_steps",
            "go_fast": "go_fast",
            "output_quality": "output_quality",
        },
        ratios=DEV_RATIOS,
        formats=JPG,
        outputs="num_outputs",
        outputs_max=4,
        checker_off="disable_safety_checker",
    ),
    "*": Words(
        plain=STEPS
        | {"go_fast": "go_fast", "output_quality": "output_quality", "strength": "prompt_strength"},
        ratios=DEV_RATIOS,
        formats=JPG,
        images=("image",),
        outputs="num_outputs",
        outputs_max=4,
        checker_off="disable_safety_checker",
    ),
}

_INPUTS = ("input_image", *(f"input_image_{n}" for n in range(2, 9)))
_BFL: Mapping[str, Words] = {
    "flux-kontext-*": Words(plain=BFL_TEXT, any_ratio=True, formats=ALL, images=_INPUTS[:4]),
    "flux-2-*": Words(
        plain={"safety_tolerance": "safety_tolerance"}, size="sides", formats=ALL, images=_INPUTS
    ),
    "*ultra*": Words(
        plain=BFL_TEXT | {"raw": "raw"}, any_ratio=True, formats=ALL, images=("image_prompt",)
    ),
    "*-fill*": Words(
        plain=BFL_TEXT | {"num_steps": "steps", "guidance": "guidance"},
        formats=ALL,
        images=("image",),
        mask="mask",
    ),
    "*-expand*": Words(
        plain=BFL_TEXT | {"num_steps": "steps", "guidance": "guidance"},
        formats=ALL,
        images=("image",),
    ),
    "flux-pro-1.1": Words(
        plain=BFL_TEXT, size="sides", side_multiple=32, formats=ALL, images=("image_prompt",)
    ),
    "*": Words(
        plain=BFL_TEXT | {"num_steps": "steps", "guidance": "guidance"},
        size="sides",
        side_multiple=32,
        formats=ALL,
        images=("image_prompt",),
    ),
}

_WAVESPEED: Mapping[str, Words] = {
    "*flux-kontext-dev*": Words(
        plain=WAVESPEED_STEPS,
        size="W*H",
        formats=ALL,
        images=("image",),
        image_list="images",
        outputs="num_images",
        outputs_max=4,
    ),
    "*flux-kontext-*": Words(
        plain={"guidance": "guidance_scale"},
        ratios=WAVESPEED_RATIOS,
        formats=ALL,
        images=("image",),
        image_list="images",
        outputs="num_images",
        outputs_max=4,
    ),
    "*": Words(
        plain=WAVESPEED_STEPS | {"strength": "strength"},
        size="W*H",
        formats=ALL,
        images=("image",),
        mask="mask_image",
        outputs="num_images",
        outputs_max=4,
        checker_on="enable_safety_checker",
    ),
}

_OPENAI: Mapping[str, Words] = {
    "*": Words(size="WxH", formats=ALL, outputs="n", outputs_max=10),
}

_KINDS: Mapping[ChannelKind, Mapping[str, Words]] = {
    ChannelKind.REPLICATE: _REPLICATE,
    ChannelKind.BFL: _BFL,
    ChannelKind.WAVESPEED: _WAVESPEED,
    ChannelKind.OPENAI: _OPENAI,
}


@lru_cache(maxsize=1024)
def words_of(kind: ChannelKind, model: str) -> Words:
    """The input fields of a provider's `model`."""
    families = _KINDS[kind]
    return next(w for pattern, w in families.items() if fnmatchcase(model.lower(), pattern))


def fields(order: Order, spec: ChannelSpec) -> dict[str, JSON]:
    """The input fields of `order` without its pictures, the operator's own ones included."""
    words = words_of(spec.kind, order.model)
    request = order.request
    values: dict[str, JSON] = {"prompt": request.prompt, "seed": request.seed}
    for ours, theirs in words.plain.items():
        value = getattr(request, ours)
        if ours == "strength" and request.task is not Task.IMAGE_TO_IMAGE:
            continue
        if ours == "guidance" or value not in (False, None):
            values[theirs] = value
    values |= _shape(order, words)
    if words.formats:
        # A format the provider does not have is made from a lossless one here.
        values["output_format"] = words.formats.get(request.output_format, "png")
    if words.outputs:
        values[words.outputs] = request.num_outputs
    if words.checker_off and not request.safety_check:
        values[words.checker_off] = True
    if words.checker_on:
        values[words.checker_on] = request.safety_check
    if request.margins is not None and request.task is Task.EXPAND:
        for side in ("top", "bottom", "left", "right"):
            values[side] = getattr(request.margins, side)
    return renamed(values, spec)


def renamed(values: Mapping[str, JSON], spec: ChannelSpec) -> dict[str, JSON]:
    """`values` after the operator's parameter map."""
    names = {name: spec.rename.get(name, name) for name in values}
    return {names[name]: value for name, value in values.items() if names[name]} | dict(spec.extra)


def _shape(order: Order, words: Words) -> dict[str, JSON]:
    """Size or ratio, in the words of the provider."""
    request = order.request
    if request.task in (Task.FILL, Task.EXPAND):
        return {}  # the picture says it
    if words.size == "sides":
        sides: dict[str, JSON] = {
            "width": _on_grid(request.width, words.side_multiple),
            "height": _on_grid(request.height, words.side_multiple),
        }
        return sides | ({"aspect_ratio": "custom"} if words.custom_ratio else {})
    if words.size:
        return {"size": f"{request.width}{words.size[1]}{request.height}"}
    if not words.ratios and not words.any_ratio:
        return {}
    if order.images and _follows(request, order):
        return {"aspect_ratio": words.match} if words.match else {}
    return {"aspect_ratio": ratio_name(request, words)}


def _follows(request: ImageRequest, order: Order) -> bool:
    """Whether the size asked for is the one that the first picture leads to by itself."""
    first = order.images[0]
    asked = Size(request.width, request.height)
    return asked == nearest(first.width / first.height, KONTEXT_SIZES)


def ratio_name(request: ImageRequest, words: Words) -> str:
    """The ratio of the request as W:H: the nearest known one, or an exact one if none is near."""
    return _ratio_name(request.width, request.height, words.ratios)


@lru_cache(maxsize=1024)
def _ratio_name(width: int, height: int, ratios: tuple[str, ...]) -> str:
    ratio = width / height

    def distance(name: str) -> float:
        value = parse_ratio(name)
        assert value is not None
        return abs(math.log(value / ratio))

    best = min(ratios or PRO_RATIOS, key=distance)
    if ratios or distance(best) <= RATIO_TOLERANCE:
        return best
    common = math.gcd(width, height)
    return f"{width // common}:{height // common}"


def _on_grid(length: int, multiple: int) -> int:
    return max(multiple, round(length / multiple) * multiple)
