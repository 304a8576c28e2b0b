"""Whole pictures on the weights of the package, against the pipelines of diffusers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from torch import Tensor

from fluxserve.flux import sample
from fluxserve.flux.autoencoder import from_pixels
from fluxserve.flux.sample import NotANumber, Sample
from fluxserve.flux.weights import Model


@dataclass(frozen=True, slots=True)
class Wish:
    prompt: str
    steps: int
    guidance: float
    seed: int
    edit: bool = False
    approximations: tuple[str, ...] = ()


WISHES = (
    Wish("a red apple", 4, 2.0, 1),
    Wish("make it grayscale", 5, 1.5, 2, edit=True),
    Wish("a blue star on a yellow background", 3, 1.0, 3),
    Wish("make it sepia", 4, 1.0, 4, edit=True),
)


def photo(side: int) -> Tensor:
    """(side, side, 3) uint8: two ramps and a disc."""
    line = torch.arange(side)
    disc = ((line - side / 2) ** 2)[:, None] + ((line - side / 2) ** 2)[None] < (side / 3) ** 2
    ramp = (line * 255 // side).expand(side, side)
    return torch.stack([ramp, ramp.T, disc * 255], dim=-1).to(torch.uint8)


def begin(model: Model, wish: Wish) -> Sample:
    side = model.spec.native_size or 64
    pixels = from_pixels(photo(side))
    condition = sample.condition(
        model,
        prompt=wish.prompt,
        width=side,
        height=side,
        num_steps=wish.steps,
        guidance=wish.guidance,
        references=[model.autoencoder.encode(pixels)] if wish.edit else [],
        approximations=wish.approximations,
    )
    return sample.begin(model, condition, wish.seed)


def run(model: Model, wishes: Sequence[Wish]) -> list[Tensor]:
    """All of them together; each leaves when it is done."""
    samples = [begin(model, wish) for wish in wishes]
    while running := [s for s in samples if not s.is_done]:
        sample.advance(model, running)
    return [sample.finish(model, s) for s in samples]


@pytest.fixture(scope="module")
def theirs(embedded_folder: Path) -> tuple[FluxPipeline, FluxKontextPipeline]:
    edit = FluxKontextPipeline.from_pretrained(embedded_folder, dtype=torch.float32)
    edit.set_progress_bar_config(disable=True)
    parts = {k: v for k, v in edit.components.items() if k in edit.components}
    text = FluxPipeline(**parts)
    text.set_progress_bar_config(disable=True)
    return text, edit


def expected(
    pipelines: tuple[FluxPipeline, FluxKontextPipeline], model: Model, wish: Wish
) -> Tensor:
    side = model.spec.native_size or 64
    common = {
        "prompt": wish.prompt,
        "negative_prompt": "",
        "true_cfg_scale": wish.guidance,
        "height": side,
        "width": side,
        "num_inference_steps": wish.steps,
        "max_sequence_length": model.spec.text_tokens,
        "generator": torch.Generator().manual_seed(wish.seed),
        "output_type": "pt",
    }
    if wish.edit:
        image = (photo(side).permute(2, 0, 1).float() / 255)[None]
        found = pipelines[1](image=image, max_area=side * side, _auto_resize=False, **common)
    else:
        found = pipelines[0](**common)
    pixels: Tensor = found.images[0].permute(1, 2, 0)
    return pixels


def test_a_mixed_batch_of_pictures_equals_the_pipelines_of_diffusers(
    embedded: Model, theirs: tuple[FluxPipeline, FluxKontextPipeline]
) -> None:
    for picture, wish in zip(run(embedded, WISHES), WISHES, strict=True):
        difference = picture.float() / 255 - expected(theirs, embedded, wish)
        # Half of a step of the rounding to bytes, and the promised 1/255 at most.
        assert difference.abs().max() <= 1 / 255


def test_every_picture_of_a_batch_equals_the_same_one_made_alone(embedded: Model) -> None:
    for picture, wish in zip(run(embedded, WISHES), WISHES, strict=True):
        (alone,) = run(embedded, [wish])
        assert (picture.int() - alone.int()).abs().max() <= 1


def test_a_step_that_gives_no_numbers_names_the_culprit_and_moves_nobody(embedded: Model) -> None:
    good, bad = begin(embedded, WISHES[0]), begin(embedded, WISHES[2])
    bad.latents = bad.latents * float("nan")
    before = good.latents
    with pytest.raises(sample.NotANumber) as caught:
        sample.advance(embedded, [good, bad])
    assert caught.value.samples == (1,)
    assert good.step == bad.step == 0
    assert good.latents is before
    sample.advance(embedded, [good])
    assert good.step == 1


def test_a_fast_run_computes_half_of_the_steps_and_stays_close(embedded: Model) -> None:
    exact = Wish("make it sepia", 28, 1.5, 5, edit=True)
    fast = begin(embedded, replace(exact, approximations=("skip",)))
    forwards = 0
    while not fast.is_done:
        sample.advance(embedded, [fast])
        forwards += 1
    assert forwards == 13
    (expected,) = run(embedded, [exact])
    assert (sample.finish(embedded, fast).float() - expected.float()).abs().mean() < 6


def test_a_fast_run_changes_nothing_for_its_company(embedded: Model) -> None:
    exact = Wish("a taxi", 12, 2.0, 5)
    company = [exact, replace(exact, approximations=("skip",), seed=6)]
    (alone,) = run(embedded, [exact])
    assert (run(embedded, company)[0].int() - alone.int()).abs().max() <= 1


def test_a_preview_resembles_the_picture(embedded: Model) -> None:
    made = begin(embedded, WISHES[0])
    assert sample.glimpse(embedded, made) is None
    while not made.is_done:
        sample.advance(embedded, [made])
    small = sample.glimpse(embedded, made)
    assert small is not None
    whole = sample.finish(embedded, made).permute(2, 0, 1)[None].float()
    shrunk = torch.nn.functional.adaptive_avg_pool2d(whole, (small.shape[0], small.shape[1]))[
        0
    ].permute(1, 2, 0)
    assert (small.float() - shrunk).abs().mean() < 25


def test_a_picture_that_decodes_to_no_numbers_is_not_delivered(embedded: Model) -> None:
    made = begin(embedded, WISHES[0])
    made.latents = made.latents * 1e38  # as a value too large for float16 would be
    with pytest.raises(NotANumber):
        sample.finish(embedded, made)
