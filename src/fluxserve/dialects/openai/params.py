"""What was asked, as the core's parameters: which model, which size, how many steps."""

import math
from collections.abc import Mapping, Sequence

from fluxserve.core.access import Caller
from fluxserve.core.catalog import ModelCard
from fluxserve.core.errors import Unavailable, UnknownModel
from fluxserve.core.request import ImageInput, ImageParams, OutputFormat, Task
from fluxserve.dialects.base import Services
from fluxserve.dialects.openai.reading import Asked

# What OpenAI's own models are called: the setting `openai.default_model` stands for them.
OPENAI_NAMES = ("dall-e", "gpt-", "chatgpt-")
# Asked first where no model was named.
FIRST_CHOICE: Mapping[Task, Sequence[str]] = {
    Task.TEXT_TO_IMAGE: ("black-forest-labs/flux-dev", "black-forest-labs/flux-schnell"),
    Task.EDIT: ("black-forest-labs/flux-kontext-dev",),
    Task.FILL: ("black-forest-labs/flux-fill-pro",),
}
# Steps as a multiple of the model's own number. Models of few steps are left alone: they were
# trained for just that number.
QUALITY_STEPS: Mapping[str, float] = {
    "low": 0.5,
    "high": 1.5,
    "hd": 1.5,
    "xhigh": 1.75,
    "max": 1.75,
}
FEW_STEPS = 8
QUALITY_STEPS_MAX = 50


def choose_model(services: Services, name: str | None, task: Task, caller: Caller) -> str:
    """The public name to ask for; UnknownModel, Unavailable."""
    asked = (name or "").strip()
    default = services.http.openai_default_model
    if asked and services.catalog.find(asked):
        return asked
    if asked and not asked.lower().startswith(OPENAI_NAMES):
        raise UnknownModel(f"The model '{asked[:200]}' does not exist.", field="model")
    if default:
        if services.catalog.find(default) is None:
            text = f"The setting openai.default_model names '{default}', which does not exist."
            raise UnknownModel(text, field="model")
        return default
    if asked:
        text = f"The model '{asked[:200]}' is not here: the setting openai.default_model can map it"
        raise UnknownModel(f"{text} to one that is.", field="model")
    return _first(services, task, caller).id


def served(services: Services, caller: Caller) -> list[ModelCard]:
    """The cards that an engine or upstream serves and the caller may use."""
    opened = caller.key.models if caller.key else ()
    return [
        card
        for card in services.catalog.cards()
        if services.router.routes(card) and (not opened or card.id in opened)
    ]


def _first(services: Services, task: Task, caller: Caller) -> ModelCard:
    able = [card for card in served(services, caller) if task in card.tasks]
    if task is Task.EDIT and not able:
        able = [card for card in served(services, caller) if Task.IMAGE_TO_IMAGE in card.tasks]
    for name in FIRST_CHOICE[task]:
        for card in able:
            if card.id == name:
                return card
    if not able:
        words = task.value.replace("_", " ")
        raise Unavailable(f"No model that is served here can do {words}.", field="model")
    return able[0]


def to_params(
    asked: Asked,
    model: str,
    card: ModelCard,
    images: tuple[ImageInput, ...],
    mask: ImageInput | None,
) -> ImageParams:
    """All in our words, for one picture or several."""
    steps = steps_of(asked, card)
    width, height = asked.width, asked.height
    if width is None and height is None and not asked.ratio:
        width, height = _size_of(card, images)
    form = OutputFormat(asked.text("output_format") or "png")
    return ImageParams(
        model=model,
        prompt=asked.text("prompt"),
        negative_prompt=asked.text("negative_prompt"),
        images=images,
        mask=mask,
        width=width,
        height=height,
        aspect_ratio=asked.ratio,
        num_steps=steps,
        guidance=asked.number("guidance", "guidance_scale"),
        strength=asked.number("strength"),
        seed=asked.whole("seed"),
        num_outputs=asked.whole("n"),
        output_format=form,
        output_quality=asked.whole("output_compression"),
        loras=asked.loras,
        safety_tolerance=asked.whole("safety_tolerance"),
        preview_steps=preview_steps(asked, card.num_steps if steps is None else steps),
    )


def steps_of(asked: Asked, card: ModelCard) -> int | None:
    """As said, else by `quality`; None: the model's own number."""
    said = asked.whole("steps", "num_inference_steps")
    factor = QUALITY_STEPS.get(asked.text("quality") or "")
    if said is not None or factor is None or card.num_steps < FEW_STEPS:
        return said
    low, high = card.limits.num_steps
    return max(low, min(round(card.num_steps * factor), high, QUALITY_STEPS_MAX))


def preview_steps(asked: Asked, steps: int) -> int | None:
    """How far apart previews are, so that there are at most `partial_images` of them."""
    count = asked.whole("partial_images") or 0
    if not asked.flag("stream") or not count:
        return None
    return math.ceil(max(steps, 1) / (count + 1))


def _size_of(card: ModelCard, images: Sequence[ImageInput]) -> tuple[int | None, int | None]:
    """The size of the first picture, where the model makes pictures of that size.

    A larger or smaller one, or one that is not fetched yet: None, and the model's nearest size.
    """
    blob = images[0].blob if images else None
    if blob is None or not blob.width or not blob.height:
        return None, None
    low, high = card.limits.side
    fits = low <= min(blob.width, blob.height) and max(blob.width, blob.height) <= high
    if not fits or blob.width * blob.height > card.area:
        return None, None
    return blob.width, blob.height
