"""What each WaveSpeed model takes: its fields, pictures and sizes, as data.

Ranges and defaults are those of the models' published pages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fluxserve.core.catalog import Catalog, ModelCard
from fluxserve.core.request import Task
from fluxserve.core.schema import Field, Kind

OWNER = "wavespeed-ai/"
SIDE = (256, 1536)  # px, of `size`
RATIOS = ("21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One model's body. `needs` are the fields that must be there."""

    fields: tuple[Field, ...]
    pictures: tuple[str, ...] = ("image", "images")
    needs: tuple[str, ...] = ("prompt",)
    side: tuple[int, int] = SIDE  # px, of `size`; both ends included
    size: tuple[int, int] | None = None  # px, where nothing was said; None: the picture decides
    ratio: str | None = None  # where nothing was said and there is no picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model id with what stands behind it."""

    id: str
    card: ModelCard
    form: Form

    @property
    def type(self) -> str:
        """What catalogues sort by."""
        has_pictures = any(name in self.form.pictures for name in ("image", "images"))
        return "image-to-image" if has_pictures and _edits(self.card) else "text-to-image"


def _edits(card: ModelCard) -> bool:
    return Task.EDIT in card.tasks


STEPS = Field(
    name="num_inference_steps", kind=Kind.INTEGER, min=1, description="How many denoising steps"
)
GUIDANCE = Field(
    name="guidance_scale", kind=Kind.NUMBER, description="How closely the prompt is followed"
)


def _text(name: str, description: str) -> Field:
    return Field(name=name, kind=Kind.STRING, description=description)


def _steps(high: int, default: int | None) -> Field:
    return replace(STEPS, max=high, default=default)


def _guidance(low: float, high: float, default: float | None) -> Field:
    return replace(GUIDANCE, min=low, max=high, default=default)


PROMPT = _text("prompt", "What the picture shows, or how it changes")
IMAGE = Field(name="image", kind=Kind.URI, description="URL, data URI or base64 of a picture")
IMAGES = Field(
    name="images", kind=Kind.ARRAY, items=Kind.STRING, description="Pictures, as `image` has one"
)
MASK = Field(name="mask_image", kind=Kind.URI, description="White is repainted, black is kept")
STRENGTH = Field(
    name="strength",
    kind=Kind.NUMBER,
    min=0,
    max=1,
    default=0.8,
    description="How far the result may go from `image`",
)
SIZE = _text("size", "Width*height in pixels")
RATIO = _text("aspect_ratio", "Such as 16:9")
PRO_RATIO = Field(
    name="aspect_ratio", kind=Kind.STRING, choices=RATIOS, description="Shape of the picture"
)
TOLERANCE = Field(
    name="safety_tolerance",
    kind=Kind.STRING,
    choices=("1", "2", "3", "4", "5"),
    default="2",
    description="1 is strictest",
)
CHECKER = Field(
    name="enable_safety_checker",
    kind=Kind.BOOLEAN,
    default=True,
    description="Whether a content check looks at the result, where one is configured",
)
LORAS = Field(
    name="loras",
    kind=Kind.ARRAY,
    items=Kind.OBJECT,
    description='Adapters: {"path": "...", "scale": 0 to 4}',
)
LAST = (
    Field(
        name="num_images",
        kind=Kind.INTEGER,
        min=1,
        max=4,
        default=1,
        description="How many, 1 to 4",
    ),
    Field(
        name="seed",
        kind=Kind.INTEGER,
        min=-1,
        default=-1,
        description="-1: drawn; image i uses seed + i; what is beyond 32 bits is cut",
    ),
    Field(
        name="output_format",
        kind=Kind.STRING,
        choices=("jpeg", "png", "webp"),
        default="jpeg",
        description="File format",
    ),
    Field(
        name="enable_base64_output",
        kind=Kind.BOOLEAN,
        default=False,
        description="Outputs as data URIs instead of links",
    ),
    Field(
        name="enable_sync_mode",
        kind=Kind.BOOLEAN,
        default=False,
        description="Hold the answer until the picture is there",
    ),
)

KONTEXT_DEV = Form(
    fields=(PROMPT, SIZE, RATIO, _steps(50, 28), _guidance(1, 20, 2.5), LORAS, *LAST)
)
KONTEXT_DEV_LORA = Form(
    fields=(PROMPT, SIZE, RATIO, _steps(50, 28), _guidance(0, 20, 2.5), LORAS, *LAST)
)
KONTEXT_DEV_MULTI = replace(KONTEXT_DEV, needs=("prompt", "images"))
KONTEXT_PRO = Form(
    fields=(PROMPT, PRO_RATIO, _guidance(1, 20, 3.5), TOLERANCE, *LAST), needs=("prompt", "image")
)
KONTEXT_PRO_TEXT = replace(KONTEXT_PRO, pictures=(), needs=("prompt",), ratio="1:1")
KONTEXT_PRO_MULTI = replace(KONTEXT_PRO, needs=("prompt", "images"))
DEV = Form(
    fields=(
        *(PROMPT, STRENGTH, SIZE, RATIO, _steps(50, 28), _guidance(0, 20, 3.5)),
        *(LORAS, CHECKER, *LAST),
    ),
    pictures=("image", "mask_image"),
    size=(1024, 1024),
)
DEV_LORA = replace(
    DEV,
    fields=tuple(
        _guidance(0, 10, 3.5) if field.name == GUIDANCE.name else field for field in DEV.fields
    ),
)
SCHNELL = replace(
    DEV,
    fields=(
        *(PROMPT, STRENGTH, SIZE, RATIO, _steps(8, 4), _guidance(0, 10, 3.5)),
        *(LORAS, CHECKER, *LAST),
    ),
)
# Any card, by the id it has here: its own defaults and limits.
LOCAL = Form(
    fields=(
        PROMPT,
        replace(STRENGTH, default=None),
        SIZE,
        RATIO,
        _steps(100, None),
        _guidance(0, 100, None),
        LORAS,
        replace(CHECKER, default=None),
        *LAST,
    ),
    pictures=("image", "images", "mask_image"),
    needs=(),
    side=(64, 4096),
)

FORMS: Mapping[str, Form] = {
    "flux-kontext-dev": KONTEXT_DEV,
    "flux-kontext-dev-ultra-fast": KONTEXT_DEV,
    "flux-kontext-dev-lora": KONTEXT_DEV_LORA,
    "flux-kontext-dev-lora-ultra-fast": KONTEXT_DEV_LORA,
    "flux-kontext-dev/multi": KONTEXT_DEV_MULTI,
    "flux-kontext-dev/multi-ultra-fast": KONTEXT_DEV_MULTI,
    "flux-kontext-pro": KONTEXT_PRO,
    "flux-kontext-max": KONTEXT_PRO,
    "flux-kontext-pro/text-to-image": KONTEXT_PRO_TEXT,
    "flux-kontext-max/text-to-image": KONTEXT_PRO_TEXT,
    "flux-kontext-pro/multi": KONTEXT_PRO_MULTI,
    "flux-kontext-max/multi": KONTEXT_PRO_MULTI,
    "flux-dev": DEV,
    "flux-dev-ultra-fast": DEV,
    "flux-dev-lora": DEV_LORA,
    "flux-dev-lora-ultra-fast": DEV_LORA,
    "flux-schnell": SCHNELL,
    "flux-schnell-lora": SCHNELL,
}


def models(catalog: Catalog) -> Mapping[str, Model]:
    """By lower-case id: WaveSpeed's names of our cards, and the cards' own ids."""
    found = {}
    for card in catalog.cards():
        for name in card.names:
            if name.startswith(OWNER) or name == card.id:
                form = FORMS.get(name.removeprefix(OWNER), LOCAL)
                found[name.lower()] = Model(id=name, card=card, form=form)
    return found
