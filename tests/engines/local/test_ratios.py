"""Every shape that a dialect has a word for, from its request to how FLUX.1 will make it."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from fluxserve.core.request import MATCH_INPUT, ImageRequest, Task
from fluxserve.core.sizes import parse_ratio, parse_size
from fluxserve.dialects.fal.apps import SIZES as FAL_SIZES
from fluxserve.dialects.replicate.inputs import OPEN_RATIOS, PRO_RATIOS
from fluxserve.dialects.wavespeed.forms import RATIOS as WAVESPEED_RATIOS
from fluxserve.engines.local.orders import order
from fluxserve.engines.local.plan import plan
from fluxserve.flux.spec import FLUX_DEV, FLUX_KONTEXT_DEV
from tests.dialects.served import client_of, house_on, png

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPLICATE = "/v1/models/black-forest-labs"
BFL_RATIOS = ("21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21", "3:7", "7:3")
OPENAI_SIZES = ("1024x1024", "1536x1024", "1024x1536")

PICTURE = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def shapes() -> list[tuple[str, dict[str, Any], str]]:
    """Path, body, and the ratio or size that was asked for."""
    found: list[tuple[str, dict[str, Any], str]] = []
    models = {"flux-1.1-pro": PRO_RATIOS, "flux-dev": OPEN_RATIOS, "flux-schnell": OPEN_RATIOS}
    for model, ratios in models.items():
        path = f"{REPLICATE}/{model}/predictions"
        found += [(path, {"input": body(ratio)}, ratio) for ratio in ratios.split()]
    path = f"{REPLICATE}/flux-kontext-dev/predictions"
    said = {"input_image": PICTURE}
    found += [(path, {"input": body(ratio) | said}, ratio) for ratio in OPEN_RATIOS.split()]
    found += [("/bfl/v1/flux-kontext-pro", body(ratio), ratio) for ratio in BFL_RATIOS]
    found += [("/bfl/v1/flux-dev", {"prompt": "x", "width": 1440, "height": 256}, "1440x256")]
    path = "/api/v3/wavespeed-ai/flux-kontext-pro/text-to-image"
    found += [(path, body(ratio), ratio) for ratio in WAVESPEED_RATIOS]
    path = "/api/v3/wavespeed-ai/flux-dev"
    sides = ("256*256", "1536*1536", "512*1024", "1536*640")
    found += [(path, {"prompt": "x", "size": size}, size) for size in sides]
    path = "/v1/images/generations"
    found += [(path, {"prompt": "x", "size": size}, size) for size in OPENAI_SIZES]
    path = "/fal/run/fal-ai/flux/dev"
    found += [(path, {"prompt": "x", "image_size": n}, str(size)) for n, size in FAL_SIZES.items()]
    path = "/fal/run/fal-ai/flux-pro/kontext/text-to-image"
    found += [(path, body(ratio), ratio) for ratio in BFL_RATIOS[:9]]
    path = "/fluxserve/v1/predictions"
    found += [(path, {"model": "flux-kontext-dev", **body(r)}, r) for r in ("1:4", "4:1", "5:4")]
    return found


def body(ratio: str) -> dict[str, Any]:
    return {"prompt": "x", "aspect_ratio": ratio}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("data")
    async with house_on(folder, {"simulator": {"seconds": 0.0}}) as house, client_of(house) as it:
        yield it


async def asked(client: httpx.AsyncClient, path: str, said: dict[str, Any]) -> ImageRequest:
    """The request that came of it, as the engine gets it."""
    made = await client.post(path, json=said)
    assert made.is_success, made.text
    page = await client.get("/fluxserve/v1/predictions?limit=1")
    (newest,) = page.json()["results"]
    request = newest["request"]
    return ImageRequest(
        model=newest["model"],
        task=Task(request["task"]),
        prompt=request["prompt"],
        width=request["width"],
        height=request["height"],
        num_steps=request["num_steps"],
        guidance=request["guidance"],
        seed=request["seed"],
    )


@pytest.mark.parametrize(("path", "said", "wanted"), shapes())
async def test_a_shape_that_a_dialect_knows_is_made_without_being_cut_or_stretched(
    client: httpx.AsyncClient, path: str, said: dict[str, Any], wanted: str
) -> None:
    request = await asked(client, path, said)
    spec = FLUX_DEV if request.task is Task.TEXT_TO_IMAGE else FLUX_KONTEXT_DEV
    sizes = [] if request.task is Task.TEXT_TO_IMAGE else [(64, 64)]
    found = plan(spec, order(request, job_id="x", sizes=sizes))
    assert (found.width, found.height) == (found.out_width, found.out_height)
    assert found.notes == ()
    if size := parse_size(wanted):
        assert (found.width, found.height) == (size.width, size.height)
        return
    ratio = parse_ratio(wanted)
    assert ratio
    # Kontext makes the sizes it was trained on; that for 16:9 is 1328 x 800, as elsewhere.
    assert found.width / found.height == pytest.approx(ratio, rel=0.075)
    assert 0.9e6 < found.width * found.height < 1.2e6


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1000, 1000), (300, 900), (1600, 200)])
async def test_match_input_image_gives_a_picture_of_the_shape_that_was_read(
    client: httpx.AsyncClient, width: int, height: int
) -> None:
    picture = f"data:image/png;base64,{base64.b64encode(png(width, height)).decode()}"
    said = {"prompt": "x", "aspect_ratio": MATCH_INPUT, "input_image": picture}
    request = await asked(client, f"{REPLICATE}/flux-kontext-dev/predictions", {"input": said})
    found = plan(FLUX_KONTEXT_DEV, order(request, job_id="x", sizes=[(width, height)]))
    assert found.references == ((found.width, found.height),)
    assert (found.width, found.height) in FLUX_KONTEXT_DEV.reference_sizes
