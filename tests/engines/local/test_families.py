"""FLUX.1 dev, schnell and Kontext dev by their configs: random small weights, whole pictures.

Against the pipelines of diffusers, and in every size from 256 to beyond one megapixel.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from PIL import Image

from fluxserve.core.request import OutputFormat
from fluxserve.engines.local.pipelines import Pipeline
from fluxserve.engines.local.runner import Runner
from fluxserve.engines.local.turns import Turns
from fluxserve.engines.local.wire import Order
from fluxserve.flux import weights
from fluxserve.flux.folder import embedded_folder
from fluxserve.flux.spec import Guidance
from fluxserve.flux.weights import Model
from fluxserve.images.codec import encode
from tests.engines.local.test_plan import TEXT
from tests.flux.folders import KINDS, make_folder

ASKED = replace(TEXT, num_steps=2, guidance=3.0, width=256, height=384, indexes=(0,), seed=11)
EDIT = replace(ASKED, task="edit")


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {kind: make_folder(embedded_folder(), place / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(folders: Mapping[str, Path]) -> Mapping[str, Model]:
    return {
        kind: weights.load(folder, device="cpu", dtype="float32")
        for kind, folder in folders.items()
    }


def photo(width: int, height: int) -> Image.Image:
    ramp = Image.linear_gradient("L")
    whole = Image.merge("RGB", (ramp, ramp.rotate(90), Image.radial_gradient("L")))
    return whole.resize((width, height))


def made(model: Model, order: Order, pictures: Sequence[Image.Image] = ()) -> Image.Image:
    """All of it as in an engine process, from the order to the file."""
    order = replace(order, sizes=tuple(picture.size for picture in pictures))
    files = [encode(picture, OutputFormat.PNG).data for picture in pictures]
    turns = Turns(shared=False)
    runner = Runner(Pipeline(model, turns), turns, memory_max_bytes=0)
    plan = runner.plan(order)
    (one,) = runner.encode(order, files, plan, lambda text: None)
    while not one.is_done:
        runner.advance([one])
    found = Image.open(BytesIO(runner.decode(order, files, plan, one).data))
    assert found.size == (order.width, order.height)
    return found.convert("RGB")


def difference(found: Image.Image, expected: object) -> float:
    return float(numpy.abs(numpy.asarray(found) / 255.0 - numpy.asarray(expected)).max())


def test_each_family_is_what_its_configs_say(models: Mapping[str, Model]) -> None:
    said = {
        kind: (model.spec.guidance, model.spec.edits, model.spec.text_tokens, model.spec.num_steps)
        for kind, model in models.items()
    }
    assert said == {
        "dev": (Guidance.EMBEDDED, False, 512, 28),
        "schnell": (Guidance.NONE, False, 256, 4),
        "kontext": (Guidance.EMBEDDED, True, 512, 28),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_from_text_is_that_of_diffusers(
    folders: Mapping[str, Path], models: Mapping[str, Model], kind: str
) -> None:
    theirs = FluxPipeline.from_pretrained(folders[kind], dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    (expected,) = theirs(
        prompt=ASKED.prompt,
        width=ASKED.width,
        height=ASKED.height,
        num_inference_steps=ASKED.num_steps,
        guidance_scale=ASKED.guidance,
        max_sequence_length=models[kind].spec.text_tokens,
        generator=torch.Generator().manual_seed(ASKED.seed),
        output_type="np",
    ).images
    assert difference(made(models[kind], ASKED), expected) <= 1 / 255


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_number_types_make_the_picture_that_diffusers_makes(
    folders: Mapping[str, Path], dtype: torch.dtype
) -> None:
    model = weights.load(folders["dev"], device="cpu", dtype=str(dtype).removeprefix("torch."))
    theirs = FluxPipeline.from_pretrained(folders["dev"], dtype=dtype)
    theirs.set_progress_bar_config(disable=True)
    (expected,) = theirs(
        prompt=ASKED.prompt,
        width=ASKED.width,
        height=ASKED.height,
        num_inference_steps=ASKED.num_steps,
        guidance_scale=ASKED.guidance,
        max_sequence_length=model.spec.text_tokens,
        generator=torch.Generator().manual_seed(ASKED.seed),
        output_type="np",
    ).images
    error = numpy.abs(numpy.asarray(made(model, ASKED)) / 255.0 - expected)
    assert error.mean() <= 2 / 255  # text encoders and VAE round in other places than theirs
    assert error.max() <= 16 / 255


def test_an_edit_reads_its_picture_at_the_preferred_size_as_diffusers_does(
    folders: Mapping[str, Path], models: Mapping[str, Model]
) -> None:
    theirs = FluxKontextPipeline.from_pretrained(folders["kontext"], dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    preferred = photo(1184, 880)  # so that nobody's way of resizing counts
    (expected,) = theirs(
        image=preferred,
        prompt=EDIT.prompt,
        width=EDIT.width,
        height=EDIT.height,
        max_area=EDIT.width * EDIT.height,
        num_inference_steps=EDIT.num_steps,
        guidance_scale=EDIT.guidance,
        max_sequence_length=512,
        generator=torch.Generator().manual_seed(EDIT.seed),
        output_type="np",
    ).images
    assert difference(made(models["kontext"], EDIT, [preferred]), expected) <= 1 / 255


@pytest.mark.parametrize(("width", "height"), [(256, 256), (672, 1568), (1536, 1536)])
def test_every_size_from_256_to_beyond_a_megapixel_can_be_made(
    models: Mapping[str, Model], width: int, height: int
) -> None:
    made(models["schnell"], replace(ASKED, width=width, height=height, num_steps=1))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_one_of_several_input_pictures_counts(
    models: Mapping[str, Model], count: int
) -> None:
    """References small enough for a test; that each is read at the preferred size is the plan's."""
    model = models["kontext"]
    model = replace(model, spec=replace(model.spec, reference_sizes=((160, 96), (96, 160))))
    order = replace(EDIT, width=256, height=256)
    pictures = [photo(320, 200).rotate(90 * at, expand=True) for at in range(count)]
    whole = made(model, order, pictures)
    for at in range(count):
        changed = [*pictures]
        changed[at] = Image.new("RGB", changed[at].size, "white")
        assert difference(made(model, order, changed), numpy.asarray(whole) / 255.0) > 0
