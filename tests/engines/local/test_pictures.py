"""The pictures around the steps: what a preview shows, and how large they may be."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from fluxserve.core.errors import EngineError
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import OutputFormat
from fluxserve.engines.local.pipelines import Pipeline, canvas
from fluxserve.engines.local.plan import plan
from fluxserve.engines.local.runner import Runner
from fluxserve.engines.local.turns import Turns
from fluxserve.engines.local.wire import Order
from fluxserve.flux import packing
from fluxserve.flux.autoencoder import from_pixels
from fluxserve.flux.sample import Sample
from fluxserve.flux.spec import FLUX_KONTEXT_DEV
from fluxserve.flux.weights import Model
from fluxserve.images.codec import PIXELS_MAX, encode, prepare
from tests.engines.local.test_wire import ORDER
from tests.images.material import quadrants

pytestmark = pytest.mark.usefixtures("calm")


def runner(model: Model) -> Runner:
    turns = Turns(shared=False)
    return Runner(Pipeline(model, turns), turns, memory_max_bytes=0)


def order(task: str, *pictures: Image.Image, **changes: Any) -> tuple[Order, list[bytes]]:
    """An order of one output, and its pictures as files."""
    made = replace(
        ORDER,
        task=task,
        sizes=tuple(picture.size for picture in pictures),
        margins=None,
        loras=(),
        indexes=(0,),
        num_steps=2,
        **changes,
    )
    return made, [encode(picture, OutputFormat.PNG).data for picture in pictures]


def finished(model: Model, sample: Sample, picture: Image.Image) -> None:
    """Let the sample have come to a known picture."""
    raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = raw.reshape(picture.height, picture.width, 3)
    sample.latents = packing.pack(model.autoencoder.encode(from_pixels(pixels)))
    sample.velocity = torch.zeros_like(sample.latents)
    sample.step = sample.num_steps


def difference(first: EncodedImage, second: EncodedImage) -> float:
    """The mean one of all channels of the two in small, 0 .. 255."""
    small = [Image.open(BytesIO(x.data)).convert("RGB").resize((32, 32)) for x in (first, second)]
    return max(ImageStat.Stat(ImageChops.difference(*small)).mean)


@pytest.mark.parametrize("size", [(512, 128), (96, 384)])
@pytest.mark.parametrize("task", ["text_to_image", "edit", "image_to_image"])
def test_a_preview_shows_the_same_part_of_the_picture_as_the_result(
    model: Model, task: str, size: tuple[int, int]
) -> None:
    side = model.spec.native_size or 0
    given = [] if task == "text_to_image" else [quadrants(*size)]
    wanted, files = order(task, *given, width=size[0], height=size[1], strength=0.6)
    found = runner(model)
    laid_out = found.plan(wanted)
    (sample,) = found.encode(wanted, files, laid_out, print)
    picture = Image.new("RGB", (side, side), "white")
    picture.paste(quadrants(side // 2, side // 2), (side // 4, side // 4))
    finished(model, sample, picture)
    look = found.glimpse(sample, laid_out)
    assert look is not None
    result = found.decode(wanted, files, laid_out, sample)
    assert (result.width, result.height) == size
    assert difference(look(), result) < 10


@pytest.mark.parametrize(
    ("task", "size", "margins", "message"),
    [
        ("fill", (4097, 64), None, "images: a picture to repaint has 1 to 4096 px a side"),
        ("expand", (64, 5000), (1, 1, 1, 1), "images: a picture to repaint has 1 to 4096 px"),
        ("expand", (4000, 64), (0, 0, 50, 50), "margins: the grown canvas has 1 to 4096 px"),
    ],
)
def test_a_picture_too_large_to_repaint_is_named_and_not_a_side_nobody_asked_for(
    task: str, size: tuple[int, int], margins: tuple[int, int, int, int] | None, message: str
) -> None:
    wanted = replace(ORDER, task=task, sizes=(size,), margins=margins, has_mask=True)
    with pytest.raises(EngineError, match=message) as caught:
        plan(FLUX_KONTEXT_DEV, wanted)
    assert caught.value.field == message.partition(":")[0]


def test_what_the_intake_lets_in_the_engine_reads_however_large_it_is() -> None:
    huge = Image.new("1", (8001, 8000), 1)
    kept = prepare(encode(huge, OutputFormat.PNG).data, pixels_max=PIXELS_MAX + 8000).data
    wanted, _ = order("fill", huge, has_mask=True)
    assert [part.size for part in canvas(wanted, [kept, kept])] == [huge.size, huge.size]
