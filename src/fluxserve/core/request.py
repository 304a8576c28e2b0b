"""What was asked for: `ImageParams` as said, `ImageRequest` complete and within limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

JSON: TypeAlias = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]


class Task(StrEnum):
    """What a model is asked to do with its inputs."""

    TEXT_TO_IMAGE = "text_to_image"
    EDIT = "edit"  # input images steer the result by instruction (Kontext)
    IMAGE_TO_IMAGE = (
        "image_to_image"  # the first image is the start of the denoising, by `strength`
    )
    FILL = "fill"  # repaint the white part of the mask
    EXPAND = "expand"  # grow the canvas by margins
    REDUX = "redux"  # variation of an image prompt


class OutputFormat(StrEnum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def mime(self) -> str:
        return f"image/{self.value}"


class Approximation(StrEnum):
    """What a run may leave out or round off, each by its own name."""

    SKIP = "skip"  # some steps are extrapolated instead of computed
    REF_KV = "ref_kv"  # in some steps keys and values of the input pictures are those of the last
    FP8 = "fp8"  # the large linears in 8 bits, where the engine has them so


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A small pointer to stored bytes."""

    key: str  # in the blob store
    mime: str
    size_bytes: int
    sha256: str = ""
    width: int = 0  # px; 0 when it is no picture
    height: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """One input picture: stored already (`blob`), or to be fetched when the job runs (`url`)."""

    blob: BlobRef | None = None
    url: str | None = None
    field_name: str = ""  # as the caller spelled it, for errors that come later; "": not known

    def __post_init__(self) -> None:
        assert (self.blob is None) != (self.url is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRef:
    """An adapter for one request: an https URL or a name under the server's LoRA folder."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """How far the canvas grows, in px."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


MATCH_INPUT = "match_input_image"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParams:
    """What the caller said; None (or empty) where nothing was said."""

    model: str  # any public name
    prompt: str | None = None
    negative_prompt: str | None = None
    images: tuple[ImageInput, ...] = ()
    mask: ImageInput | None = None
    task: Task | None = None
    width: int | None = None  # px
    height: int | None = None  # px
    aspect_ratio: str | None = None  # "16:9" or MATCH_INPUT
    megapixels: float | None = None
    num_steps: int | None = None
    guidance: float | None = None
    strength: float | None = None
    seed: int | None = None  # None or negative: drawn
    num_outputs: int | None = None
    output_format: OutputFormat | None = None
    output_quality: int | None = None
    margins: Margins | None = None
    loras: tuple[LoraRef, ...] = ()
    go_fast: bool | None = None
    approximate: tuple[Approximation, ...] | None = None  # None: as go_fast says; (): nothing
    prompt_upsampling: bool | None = None
    safety_check: bool | None = None  # None: as the card says
    safety_tolerance: int | None = None
    raw: bool | None = None
    preview_steps: int | None = None  # a preview each so many steps; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """What will be made: complete, within the limits of its model, seed drawn.

    Width and height are 0 while they follow from an input picture that is not fetched yet.
    """

    model: str  # a ModelCard.id, aliases resolved
    task: Task
    prompt: str
    negative_prompt: str = ""
    images: tuple[ImageInput, ...] = ()
    mask: ImageInput | None = None
    width: int  # px
    height: int  # px
    num_steps: int
    guidance: float
    strength: float = 1.0
    seed: int  # 0 .. 2**32 - 1; output i uses seed + i
    num_outputs: int = 1
    output_format: OutputFormat = OutputFormat.PNG
    output_quality: int = 95  # 0 .. 100, jpeg and webp
    margins: Margins | None = None
    loras: tuple[LoraRef, ...] = ()
    go_fast: bool = False
    approximate: tuple[Approximation, ...] | None = None  # None: as go_fast says; (): nothing
    prompt_upsampling: bool = False
    safety_check: bool = True
    safety_tolerance: int = 2
    raw: bool = False
    preview_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSpec:
    """Who wants to hear about a prediction."""

    url: str
    secret: str | None = None  # BFL: given with the request
    events: tuple[str, ...] = ("completed",)  # of start, output, logs, completed


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which dialect and caller asked, in which words, and where answers point to."""

    dialect: str
    model_name: str = ""  # as the caller spelled it
    key_id: str | None = None
    tenant_id: str = "default"
    base_url: str = ""  # scheme://host[:port] that the caller used
    mount: str = ""  # path prefix that the caller used, e.g. "/flux/v1"
    said: Mapping[str, JSON] = field(default_factory=dict)  # the input as received, no base64
    extra: Mapping[str, JSON] = field(default_factory=dict)  # what only the dialect understands
    webhook: WebhookSpec | None = None
