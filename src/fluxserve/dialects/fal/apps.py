"""What each fal app takes: its fields, pictures and defaults, as data.

Names are fal's; defaults and ranges are those of its published pages where they are known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fluxserve.core.catalog import Catalog, ModelCard
from fluxserve.core.errors import NotFound
from fluxserve.core.schema import Field, Kind
from fluxserve.core.sizes import Size

OWNER = "fal-ai/"
NAMESPACES = ("workflows", "comfy")
SIZES: Mapping[str, Size] = {
    "square_hd": Size(1024, 1024),
    "square": Size(512, 512),
    "portrait_4_3": Size(768, 1024),
    "portrait_16_9": Size(576, 1024),
    "landscape_4_3": Size(1024, 768),
    "landscape_16_9": Size(1024, 576),
}
MATCH_INPUT = "match_input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One app's input. `pictures` are fields that hold pictures, `needs` those that must be there.

    `size` is the name of the size where nothing was said; None: the picture or the model decides.
    """

    fields: tuple[Field, ...]
    pictures: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("prompt",)
    size: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """One app id with what stands behind it."""

    id: str
    card: ModelCard
    form: Form

    @property
    def short(self) -> str:
        """Owner and alias: what status, result and cancel are asked under."""
        parts = self.id.split("/")
        return "/".join(parts[: 3 if parts[0] in NAMESPACES else 2])


def _steps(high: int, default: int | None) -> Field:
    name = "num_inference_steps"
    return Field(name=name, kind=Kind.INTEGER, min=1, max=high, default=default)


def _guidance(default: float | None, low: float = 1) -> Field:
    return Field(name="guidance_scale", kind=Kind.NUMBER, min=low, max=20, default=default)


def _flag(name: str, *, default: bool) -> Field:
    return Field(name=name, kind=Kind.BOOLEAN, default=default)


PROMPT = Field(name="prompt", kind=Kind.STRING)
RATIO = Field(name="aspect_ratio", kind=Kind.STRING)
LORAS = Field(name="loras", kind=Kind.ARRAY, items=Kind.OBJECT)
STRENGTH = Field(name="strength", kind=Kind.NUMBER, min=0, max=1, default=0.95)
TOLERANCE = Field(
    name="safety_tolerance",
    kind=Kind.STRING,
    choices=("1", "2", "3", "4", "5", "6"),
    default="2",
)
RAW = _flag("raw", default=False)
NEGATIVE = Field(name="negative_prompt", kind=Kind.STRING)
LAST = (
    Field(name="seed", kind=Kind.INTEGER),
    Field(name="num_images", kind=Kind.INTEGER, min=1, max=4, default=1),
    Field(name="output_format", kind=Kind.STRING, choices=("jpeg", "png", "webp"), default="jpeg"),
    _flag("enable_safety_checker", default=True),
    _flag("sync_mode", default=False),
)

DEV = Form(fields=(PROMPT, _steps(50, 28), _guidance(3.5), *LAST), size="landscape_4_3")
SCHNELL = Form(fields=(PROMPT, _steps(12, 4), _guidance(None), *LAST), size="landscape_4_3")
DEV_FROM_IMAGE = Form(
    fields=(PROMPT, STRENGTH, _steps(50, 40), _guidance(3.5), *LAST),
    pictures=("image_url",),
    needs=("image_url", "prompt"),
)
DEV_LORA = replace(DEV, fields=(*DEV.fields, LORAS))
PRO = Form(
    fields=(PROMPT, RATIO, RAW, TOLERANCE, *LAST), size="landscape_4_3", pictures=("image_url",)
)
ULTRA = replace(PRO, size=None)
KONTEXT_TEXT = Form(fields=(PROMPT, RATIO, _guidance(3.5), TOLERANCE, *LAST))
KONTEXT = replace(KONTEXT_TEXT, pictures=("image_url",), needs=("image_url", "prompt"))
KONTEXT_MULTI = replace(KONTEXT_TEXT, pictures=("image_urls",), needs=("image_urls", "prompt"))
KONTEXT_DEV = Form(
    fields=(
        *(PROMPT, Field(name="resolution_mode", kind=Kind.STRING)),
        *(_steps(50, 28), _guidance(2.5), *LAST),
    ),
    pictures=("image_url",),
    needs=("image_url", "prompt"),
)
KONTEXT_LORA = replace(KONTEXT_DEV, fields=(*KONTEXT_DEV.fields, LORAS))
FILL = Form(
    fields=(PROMPT, TOLERANCE, *LAST),
    pictures=("image_url", "mask_url"),
    needs=("image_url", "mask_url"),
)
# Any other name of a card: everything, with the card's own defaults and limits.
ANY = Form(
    fields=(
        *(PROMPT, NEGATIVE, RATIO, RAW, LORAS, replace(STRENGTH, default=None)),
        *(_steps(100, None), _guidance(None, 0), replace(TOLERANCE, default=None), *LAST),
    ),
    pictures=("image_url", "image_urls", "mask_url"),
    needs=(),
)

FORMS: Mapping[str, Form] = {
    "flux/dev": DEV,
    "flux/dev/image-to-image": DEV_FROM_IMAGE,
    "flux/schnell": SCHNELL,
    "flux-lora": DEV_LORA,
    "flux-pro/v1.1": PRO,
    "flux-pro/v1.1-ultra": ULTRA,
    "flux-pro/kontext": KONTEXT,
    "flux-pro/kontext/max": KONTEXT,
    "flux-pro/kontext/text-to-image": KONTEXT_TEXT,
    "flux-pro/kontext/max/text-to-image": KONTEXT_TEXT,
    "flux-pro/kontext/multi": KONTEXT_MULTI,
    "flux-pro/kontext/max/multi": KONTEXT_MULTI,
    "flux-kontext/dev": KONTEXT_DEV,
    "flux-kontext-lora": KONTEXT_LORA,
    "flux-pro/v1/fill": FILL,
}


def find_app(catalog: Catalog, name: str) -> App:
    """By `owner/alias[/path]`: fal's names, and every other name of a card that has an owner.

    NotFound for a name that nothing has.
    """
    id_ = name.strip("/").lower()
    card = catalog.find(id_) if "/" in id_ else None
    if card is None:
        raise NotFound(f"Application {id_[:200]!r} not found")
    return App(id=id_, card=card, form=FORMS.get(id_.removeprefix(OWNER), ANY))
