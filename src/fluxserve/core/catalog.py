"""Model cards: what a public name stands for, and what may be asked of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fluxserve.core.errors import InvalidRequest, Problem, Rule, UnknownModel
from fluxserve.core.request import (
    MATCH_INPUT,
    ImageInput,
    ImageParams,
    ImageRequest,
    OutputFormat,
    Task,
)
from fluxserve.core.sizes import Size, nearest, of_area, parse_ratio, round_to

SEED_MAX = 2**32 - 1
SQUARE = Size(1024, 1024)
LORA_PATH_MAX = 8192  # characters, as of every URL

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The widest that any dialect may ask; both ends included."""

    num_steps: tuple[int, int] = (1, 100)
    guidance: tuple[float, float] = (0.0, 100.0)
    side: tuple[int, int] = (64, 2048)  # px
    pixels_max: int = 4_194_304
    multiple: int = 16  # px; sizes are rounded to it
    images: tuple[int, int] = (0, 4)  # input pictures
    outputs_max: int = 4
    prompt_max: int = 32_768  # characters
    loras_max: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a model is and what may be asked of it."""

    id: str  # owner/name
    title: str
    description: str
    tasks: tuple[Task, ...]
    num_steps: int  # the default
    guidance: float  # the default
    limits: Limits = field(default_factory=Limits)
    size: Size = SQUARE  # where neither size nor ratio nor picture was given
    ratios: Mapping[str, Size] = field(default_factory=dict)  # sizes of named ratios
    preferred: tuple[Size, ...] = ()  # sizes that an input picture is matched to
    area: int = 1024 * 1024  # px, for ratios without a named size
    output_format: OutputFormat = OutputFormat.PNG
    output_quality: int = 95
    strength: float = 0.8
    aliases: tuple[str, ...] = ()  # other public names, of every dialect
    is_open: bool = False  # its weights can be had
    weights: str = ""  # the hub repository of its weights
    license: str = ""
    license_url: str = ""
    prompt_required: bool = True

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.id, *self.aliases)


class Catalog:
    """Every card, by every name it has."""

    def __init__(self, cards: Iterable[ModelCard], draw_seed: Callable[[], int]) -> None:
        self._cards = tuple(cards)
        self._draw_seed = draw_seed
        self._by_name: dict[str, ModelCard] = {}
        for card in self._cards:
            for name in card.names:
                other = self._by_name.setdefault(name.lower(), card)
                assert other is card, f"{name} names both {other.id} and {card.id}"

    def cards(self) -> Sequence[ModelCard]:
        return self._cards

    def find(self, name: str) -> ModelCard | None:
        return self._by_name.get(name) or self._by_name.get(name.strip().lower())

    def card(self, name: str) -> ModelCard:
        """The card behind any public name; UnknownModel."""
        card = self.find(name)
        if card is None:
            raise UnknownModel(f"there is no model named {name[:200]!r}", field="model")
        return card

    def complete(self, params: ImageParams) -> ImageRequest:
        """Fill in what was not said; raise InvalidRequest naming every field out of bounds."""
        card = self.card(params.model)
        task = params.task or _task_of(card, params)
        problems = () if _is_plain(card, task, params) else tuple(_judge(card, task, params))
        if problems:
            raise InvalidRequest.of(problems)
        size = _size(card, task, params)
        seed = params.seed
        if seed is None or seed < 0:
            seed = self._draw_seed()
        return ImageRequest(
            model=card.id,
            task=task,
            prompt=params.prompt or "",
            negative_prompt=params.negative_prompt or "",
            images=params.images,
            mask=params.mask,
            width=size.width,
            height=size.height,
            num_steps=_or(params.num_steps, card.num_steps),
            guidance=_or(params.guidance, card.guidance),
            strength=_or(params.strength, card.strength),
            seed=seed & SEED_MAX,
            num_outputs=_or(params.num_outputs, 1),
            output_format=params.output_format or card.output_format,
            output_quality=_or(params.output_quality, card.output_quality),
            margins=params.margins,
            loras=params.loras,
            go_fast=bool(params.go_fast),
            approximate=params.approximate,
            prompt_upsampling=bool(params.prompt_upsampling),
            safety_check=params.safety_check is not False,
            safety_tolerance=_or(params.safety_tolerance, 2),
            raw=bool(params.raw),
            preview_steps=_or(params.preview_steps, 0),
        )

    def settle(self, request: ImageRequest, first: Size | None) -> ImageRequest:
        """Give a request its size once its first input picture is at hand (`first`)."""
        if request.width and request.height:
            return request
        card = self.card(request.model)
        size = _matched(card, first) if first else card.size
        return replace(request, width=size.width, height=size.height)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _task_of(card: ModelCard, params: ImageParams) -> Task:
    """What is asked for, read from what was given."""
    if params.margins is not None:
        return Task.EXPAND
    if params.mask is not None:
        return Task.FILL
    if not params.images:
        return Task.TEXT_TO_IMAGE
    for task in (Task.EDIT, Task.IMAGE_TO_IMAGE, Task.FILL, Task.REDUX):
        if task in card.tasks:
            return task
    return Task.EDIT


def _is_plain(card: ModelCard, task: Task, params: ImageParams) -> bool:
    """Whether nothing can be wrong: text to image, every number well within its bounds."""
    limits = card.limits
    if task is not Task.TEXT_TO_IMAGE or task not in card.tasks or params.images or params.loras:
        return False
    if params.width is not None or params.height is not None or params.negative_prompt:
        return False
    prompt, ratio = params.prompt, params.aspect_ratio
    return (
        prompt is not None
        and 0 < len(prompt) <= limits.prompt_max
        and not prompt.isspace()
        and (ratio is None or ratio in card.ratios)
        and _is_within(params.num_steps, limits.num_steps)
        and _is_within(params.guidance, limits.guidance)
        and _is_within(params.num_outputs, (1, limits.outputs_max))
        and _is_within(params.output_quality, (0, 100))
        and _is_within(params.strength, (0.0, 1.0))
    )


def _is_within(value: float | None, bounds: tuple[float, float]) -> bool:
    return value is None or bounds[0] <= value <= bounds[1]


def _judge(card: ModelCard, task: Task, params: ImageParams) -> Iterable[Problem]:
    limits = card.limits
    if task not in card.tasks:
        yield _task_problem(card, task)
        return
    if card.prompt_required and not (params.prompt or "").strip():
        yield Problem(field="prompt", rule=Rule.REQUIRED, message="prompt is required")
    for name, text in (("prompt", params.prompt), ("negative_prompt", params.negative_prompt)):
        if text is not None and len(text) > limits.prompt_max:
            words = f"at most {limits.prompt_max} characters, not {len(text)}"
            yield Problem(field=name, rule=Rule.OTHER, message=words, limit=limits.prompt_max)
    count = len(params.images)
    if count < (1 if task is not Task.TEXT_TO_IMAGE else 0):
        yield Problem(field="images", rule=Rule.REQUIRED, message="an input image is required")
    if count > limits.images[1]:
        words = f"at most {limits.images[1]} input images, not {count}"
        yield Problem(field="images", rule=Rule.MAX_ITEMS, message=words, limit=limits.images[1])
    if len(params.loras) > limits.loras_max:
        words = f"at most {limits.loras_max}, not {len(params.loras)}"
        yield Problem(field="loras", rule=Rule.MAX_ITEMS, message=words, limit=limits.loras_max)
    if any(len(lora.path) > LORA_PATH_MAX for lora in params.loras):
        words = f"a name or URL of at most {LORA_PATH_MAX} characters"
        yield Problem(field="loras", rule=Rule.OTHER, message=words, limit=LORA_PATH_MAX)
    yield from _between("num_steps", params.num_steps, limits.num_steps)
    yield from _between("guidance", params.guidance, limits.guidance)
    yield from _between("width", params.width, limits.side)
    yield from _between("height", params.height, limits.side)
    yield from _between("num_outputs", params.num_outputs, (1, limits.outputs_max))
    yield from _between("output_quality", params.output_quality, (0, 100))
    yield from _between("strength", params.strength, (0.0, 1.0))
    yield from _judge_shape(card, params)


def _judge_shape(card: ModelCard, params: ImageParams) -> Iterable[Problem]:
    ratio = params.aspect_ratio
    if ratio is not None and ratio != MATCH_INPUT:
        value = parse_ratio(ratio)
        if value is None or not 0.25 <= value <= 4:
            words = "a ratio such as 16:9, between 1:4 and 4:1"
            yield Problem(field="aspect_ratio", rule=Rule.FORMAT, message=words, expected="ratio")
    if params.width and params.height and params.width * params.height > card.limits.pixels_max:
        words = f"width x height: at most {card.limits.pixels_max} pixels"
        yield Problem(field="width", rule=Rule.OTHER, message=words)


def _between(name: str, value: float | None, bounds: tuple[float, float]) -> Iterable[Problem]:
    if value is None:
        return
    low, high = bounds
    if value < low:
        words = f"Must be greater than or equal to {low:g}"
        yield Problem(field=name, rule=Rule.MIN, message=words, limit=low)
    elif not value <= high:
        words = f"Must be less than or equal to {high:g}"
        yield Problem(field=name, rule=Rule.MAX, message=words, limit=high)


def _task_problem(card: ModelCard, task: Task) -> Problem:
    field_of = {Task.FILL: "mask", Task.EXPAND: "margins", Task.TEXT_TO_IMAGE: "images"}
    able = ", ".join(known.value.replace("_", " ") for known in card.tasks)
    name = field_of.get(task, "images")
    if task is Task.TEXT_TO_IMAGE:
        words = f"an input image is required: {card.id} can do {able}"
        return Problem(field=name, rule=Rule.REQUIRED, message=words)
    words = f"{card.id} can do {able}, not {task.value.replace('_', ' ')}"
    return Problem(field=name, rule=Rule.OTHER, message=words)


def _size(card: ModelCard, task: Task, params: ImageParams) -> Size:
    """The size asked for, or Size(0, 0) when it follows from a picture not at hand."""
    first = _known_size(params.images)
    if params.margins is not None and params.images:
        return Size(0, 0) if first is None else _grown(card, first, params)
    ratio = params.aspect_ratio
    named = ratio is not None and ratio != MATCH_INPUT
    if params.width and params.height and not named:
        return _rounded(card, Size(params.width, params.height))
    if named and ratio is not None:
        return _of_ratio(card, ratio, params.megapixels)
    if params.width or params.height:
        side = params.width or params.height or 0
        return _rounded(card, Size(params.width or side, params.height or side))
    if params.images and task is not Task.REDUX:
        return Size(0, 0) if first is None else _matched(card, first)
    if params.megapixels is not None:
        return of_area(card.size.ratio, _pixels(card, params.megapixels), card.limits.multiple)
    return card.size


def _known_size(images: Sequence[ImageInput]) -> Size | None:
    blob = images[0].blob if images else None
    return Size(blob.width, blob.height) if blob and blob.width and blob.height else None


def _of_ratio(card: ModelCard, ratio: str, megapixels: float | None) -> Size:
    if megapixels is None and ratio in card.ratios:
        return card.ratios[ratio]
    value = parse_ratio(ratio)
    assert value is not None, "judged before"
    area = card.area if megapixels is None else _pixels(card, megapixels)
    return _rounded(card, of_area(value, area, card.limits.multiple))


def _matched(card: ModelCard, first: Size) -> Size:
    """The size for a result that should look like the picture `first`."""
    if card.preferred:
        return nearest(first.ratio, card.preferred)
    area = min(card.area, first.area)
    return _rounded(card, of_area(min(max(first.ratio, 0.25), 4), area, card.limits.multiple))


def _grown(card: ModelCard, first: Size, params: ImageParams) -> Size:
    margins = params.margins
    assert margins is not None
    width = first.width + margins.left + margins.right
    height = first.height + margins.top + margins.bottom
    return _rounded(card, Size(width, height))


def _rounded(card: ModelCard, size: Size) -> Size:
    """Sides on the model's grid and within its limits."""
    low, high = card.limits.side
    multiple = card.limits.multiple

    def side(length: int) -> int:
        return min(max(round_to(length, multiple), low), high // multiple * multiple)

    return Size(side(size.width), side(size.height))


def _pixels(card: ModelCard, megapixels: float) -> int:
    return min(card.limits.pixels_max, max(4096, round(megapixels * 1024 * 1024)))
