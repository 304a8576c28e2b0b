"""What each model takes, in Replicate's words: names, types, defaults and ranges, in their order.

Models without a table of their own (the embedded one, an operator's) get one from their card.
Numbers are those of the service's published schemas, spring 2026; for [dev] models those of the
open builds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from fluxserve.core.catalog import ModelCard
from fluxserve.core.request import MATCH_INPUT, Task
from fluxserve.core.schema import Field, Kind

OWNER = "black-forest-labs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The input of one model, and the form of its output."""

    fields: tuple[Field, ...]
    has_list_output: bool = False  # a list of links, also for one picture
    zero_seed_is_random: bool = False
    published: str = "2026-01-01T00:00:00.000000Z"  # of the model
    ignored: tuple[str, ...] = ()  # fields that are checked and have no effect here
    pictures: tuple[str, ...] = dataclass_field(init=False)  # names of fields that hold pictures
    by_name: Mapping[str, Field] = dataclass_field(init=False, repr=False)

    def __post_init__(self) -> None:
        named = {field.name: field for field in self.fields}
        pictures = (one.name for one in self.fields if Kind.URI in (one.kind, one.items))
        object.__setattr__(self, "by_name", named)
        object.__setattr__(self, "pictures", tuple(pictures))

    def field(self, name: str) -> Field | None:
        return self.by_name.get(name)


def inputs_of(name: str, card: ModelCard) -> Inputs:
    """The table for the public name `owner/name`, which stands for `card`."""
    found = TABLES.get(name.lower()) or TABLES.get(card.id)
    return found or _from_card(card)


def _text(name: str, description: str, *, required: bool = False) -> Field:
    return Field(name=name, kind=Kind.STRING, description=description, required=required)


def _picture(name: str, description: str, *, required: bool = False) -> Field:
    return Field(name=name, kind=Kind.URI, description=description, required=required)


def _choice(name: str, choices: str, default: str, description: str) -> Field:
    return Field(
        name=name,
        kind=Kind.STRING,
        choices=tuple(choices.split()),
        default=default,
        description=description,
    )


def _whole(name: str, low: int, high: int, default: int | None, description: str) -> Field:
    return Field(
        name=name, kind=Kind.INTEGER, min=low, max=high, default=default, description=description
    )


def _number(name: str, low: float, high: float, default: float, description: str) -> Field:
    return Field(
        name=name, kind=Kind.NUMBER, min=low, max=high, default=default, description=description
    )


def _flag(name: str, default: bool, description: str) -> Field:
    return Field(name=name, kind=Kind.BOOLEAN, default=default, description=description)


PROMPT = _text("prompt", "Text prompt for image generation", required=True)
INSTRUCTION = _text(
    "prompt", "What to make, or an instruction how to edit the picture", required=True
)
SEED = Field(
    name="seed",
    kind=Kind.INTEGER,
    description="Random seed. Set for reproducible generation",
)
FORMATS = "webp jpg png"
FORMAT_WORDS = "Format of the output images"
QUALITY = _whole(
    "output_quality",
    0,
    100,
    80,
    "Quality when saving the output images, from 0 to 100. 100 is best quality, 0 is lowest "
    "quality. Not relevant for .png outputs",
)
WEBP = _choice("output_format", FORMATS, "webp", FORMAT_WORDS)
UPSAMPLING = _flag("prompt_upsampling", False, "Automatic prompt improvement")
NO_SAFETY = _flag("disable_safety_checker", False, "Disable the check of generated images")
GO_FAST = _flag("go_fast", True, "Run faster, at slightly lower quality for hard prompts")
RATIO_WORDS = "Aspect ratio of the generated image"
MATCH_WORDS = RATIO_WORDS + "; match_input_image gives it the shape of the input image"
INPUT_IMAGE = "Image to use as reference. Must be jpeg, png, gif, or webp"
OPEN_RATIOS = "1:1 16:9 21:9 3:2 2:3 4:5 5:4 3:4 4:3 9:16 9:21"
OUTPUTS = _whole("num_outputs", 1, 4, 1, "Number of outputs to generate")
MEGAPIXELS = _choice(
    "megapixels", "1 0.25", "1", "Approximate number of megapixels of the generated image"
)


def _tolerance(low: int) -> Field:
    words = "Safety tolerance, {} is most strict and 6 is most permissive"
    return _whole("safety_tolerance", low, 6, 2, words.format(low))


KONTEXT_DEV = Inputs(
    fields=(
        INSTRUCTION,
        _picture("input_image", INPUT_IMAGE, required=True),
        _choice("aspect_ratio", f"{OPEN_RATIOS} {MATCH_INPUT}", MATCH_INPUT, MATCH_WORDS),
        _whole("num_inference_steps", 4, 50, 30, "Number of inference steps"),
        _number("guidance", 0, 10, 2.5, "Guidance scale for generation"),
        SEED,
        WEBP,
        QUALITY,
        NO_SAFETY,
        GO_FAST,
    ),
    zero_seed_is_random=True,
    published="2025-06-25T20:11:23.330000Z",
)
KONTEXT_PRO = Inputs(
    fields=(
        INSTRUCTION,
        _picture("input_image", INPUT_IMAGE),
        _choice(
            "aspect_ratio",
            f"{MATCH_INPUT} 1:1 16:9 9:16 4:3 3:4 3:2 2:3 4:5 5:4 21:9 9:21 2:1 1:2",
            MATCH_INPUT,
            MATCH_WORDS,
        ),
        UPSAMPLING,
        SEED,
        _choice("output_format", "jpg png", "png", FORMAT_WORDS),
        _whole(
            "safety_tolerance",
            0,
            6,
            2,
            "Safety tolerance, 0 is most strict and 6 is most permissive. 2 is the highest that "
            "takes effect when an input image is used",
        ),
    ),
    published="2025-05-27T08:25:36.871000Z",
)
PRO_RATIOS = "1:1 16:9 3:2 2:3 4:5 5:4 9:16 3:4 4:3"
IMAGE_PROMPT = _picture(
    "image_prompt",
    "Image to use together with the prompt. Must be jpeg, png, gif, or webp",
)


def _side(name: str) -> Field:
    words = f"{name.capitalize()} of the generated image; used only with aspect_ratio custom. "
    return _whole(name, 256, 1440, None, words + "Must be a multiple of 32, otherwise rounded")


PRO_SHAPE = (
    PROMPT,
    IMAGE_PROMPT,
    _choice("aspect_ratio", f"custom {PRO_RATIOS}", "1:1", RATIO_WORDS),
    _side("width"),
    _side("height"),
)
FLUX_PRO = Inputs(
    fields=(
        *PRO_SHAPE,
        _whole("steps", 1, 50, 25, "Number of diffusion steps"),
        _number("guidance", 2, 5, 3, "Adherence to the prompt against variety"),
        _number("interval", 1, 4, 2, "Variance of results. Has no effect here"),
        _tolerance(1),
        UPSAMPLING,
        SEED,
        WEBP,
        QUALITY,
    ),
    published="2024-08-01T09:32:10.863000Z",
    ignored=("interval",),
)
FLUX_11_PRO = Inputs(
    fields=(*PRO_SHAPE, _tolerance(1), SEED, UPSAMPLING, WEBP, QUALITY),
    published="2024-10-02T13:52:03.910000Z",
)
ULTRA = Inputs(
    fields=(
        PROMPT,
        IMAGE_PROMPT,
        _number(
            "image_prompt_strength", 0, 1, 0.1, "Blend between the prompt and the image prompt"
        ),
        _choice(
            "aspect_ratio", "21:9 16:9 3:2 4:3 5:4 1:1 4:5 3:4 2:3 9:16 9:21", "1:1", RATIO_WORDS
        ),
        _tolerance(1),
        SEED,
        _flag("raw", False, "Generate less processed, more natural-looking images"),
        _choice("output_format", "jpg png", "jpg", FORMAT_WORDS),
    ),
    published="2024-11-06T18:57:12.000000Z",
)
# What each word of `outpaint` adds to the picture: shares of its width at the left and right, and
# of its height above and below. The service does not publish its shares; these are ours.
OUTPAINT: Mapping[str, tuple[float, float, float, float] | None] = {
    "None": None,
    "Zoom out 1.5x": (0.25, 0.25, 0.25, 0.25),
    "Zoom out 2x": (0.5, 0.5, 0.5, 0.5),
    "Make square": (0.0, 0.0, 0.0, 0.0),
    "Left outpaint": (0.5, 0.0, 0.0, 0.0),
    "Right outpaint": (0.0, 0.5, 0.0, 0.0),
    "Top outpaint": (0.0, 0.0, 0.5, 0.0),
    "Bottom outpaint": (0.0, 0.0, 0.0, 0.5),
}
FILL = Inputs(
    fields=(
        _text("prompt", "What to put into the repainted part", required=True),
        _picture("image", "The image to repaint. Must be jpeg, png, gif, or webp", required=True),
        _picture("mask", "A black-and-white image: white is repainted, black is kept"),
        Field(
            name="outpaint",
            kind=Kind.STRING,
            choices=tuple(OUTPAINT),
            default="None",
            description="Grow the canvas instead of repainting a mask",
        ),
        _whole("steps", 15, 50, 50, "Number of diffusion steps"),
        UPSAMPLING,
        _number("guidance", 1.5, 100, 60, "Adherence to the prompt against variety"),
        _tolerance(1),
        SEED,
        _choice("output_format", "jpg png", "jpg", FORMAT_WORDS),
    ),
    published="2024-11-21T13:12:40.000000Z",
)


def _open(steps: Field, *more: Field) -> tuple[Field, ...]:
    return (
        PROMPT,
        _choice("aspect_ratio", OPEN_RATIOS, "1:1", RATIO_WORDS),
        OUTPUTS,
        steps,
        *more,
        SEED,
        WEBP,
        QUALITY,
        NO_SAFETY,
        GO_FAST,
        MEGAPIXELS,
    )


SCHNELL = _open(_whole("num_inference_steps", 1, 4, 4, "Number of denoising steps"))
DEV = _open(
    _whole("num_inference_steps", 1, 50, 28, "Number of denoising steps"),
    _picture("image", "Input image for image to image mode; the output gets its shape"),
    _number(
        "prompt_strength", 0, 1, 0.8, "How much of the input image is replaced: 1 is all of it"
    ),
    _number("guidance", 0, 10, 3, "Guidance for the generated image"),
)
LORA = (
    _text("lora_weights", "Where the LoRA weights are: an https URL or a name on this server"),
    _number("lora_scale", -1, 3, 1, "How strongly the LoRA is applied"),
    _text("extra_lora", "A second LoRA, given like the first"),
    _number("extra_lora_scale", -1, 3, 1, "How strongly the second LoRA is applied"),
)
AUGUST_2024 = "2024-08-01T00:00:00.000000Z"

TABLES: Mapping[str, Inputs] = {
    f"{OWNER}/{name}": inputs
    for name, inputs in {
        "flux-kontext-dev": KONTEXT_DEV,
        "flux-kontext-pro": KONTEXT_PRO,
        "flux-kontext-max": KONTEXT_PRO,
        "flux-pro": FLUX_PRO,
        "flux-1.1-pro": FLUX_11_PRO,
        "flux-1.1-pro-ultra": ULTRA,
        "flux-fill-pro": FILL,
        "flux-schnell": Inputs(fields=SCHNELL, has_list_output=True, published=AUGUST_2024),
        "flux-dev": Inputs(fields=DEV, has_list_output=True, published=AUGUST_2024),
        "flux-schnell-lora": Inputs(
            fields=(*SCHNELL, *LORA), has_list_output=True, published=AUGUST_2024
        ),
        "flux-dev-lora": Inputs(fields=(*DEV, *LORA), has_list_output=True, published=AUGUST_2024),
    }.items()
}


def _from_card(card: ModelCard) -> Inputs:
    """A table for a model that Replicate does not have."""
    limits = card.limits
    edits = Task.EDIT in card.tasks
    fields = [INSTRUCTION if edits else PROMPT]
    if not card.prompt_required:
        fields = [_text("prompt", PROMPT.description)]
    if edits or Task.IMAGE_TO_IMAGE in card.tasks or Task.REDUX in card.tasks:
        fields.append(_picture("input_image", INPUT_IMAGE))
    if edits and limits.images[1] > 1:
        more = "Further input images"
        fields.append(
            Field(
                name="input_images",
                kind=Kind.ARRAY,
                items=Kind.URI,
                max_items=limits.images[1],
                description=more,
            )
        )
    if Task.FILL in card.tasks:
        fields.append(_picture("mask", "White is repainted, black is kept"))
    ratios = " ".join(card.ratios) or OPEN_RATIOS
    fields += [
        _choice("aspect_ratio", f"custom {ratios} {MATCH_INPUT}", MATCH_INPUT, MATCH_WORDS),
        _whole("width", *limits.side, None, "Width in pixels, with aspect_ratio custom"),
        _whole("height", *limits.side, None, "Height in pixels, with aspect_ratio custom"),
        _whole("num_inference_steps", *limits.num_steps, card.num_steps, "Number of steps"),
        _number("guidance", *limits.guidance, card.guidance, "Guidance scale"),
        SEED,
        WEBP,
        QUALITY,
        NO_SAFETY,
        GO_FAST,
    ]
    if not edits:
        fields.append(_whole("num_outputs", 1, limits.outputs_max, 1, OUTPUTS.description))
    return Inputs(fields=tuple(fields), has_list_output=not edits)
