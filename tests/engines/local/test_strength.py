"""How many steps a picture to start from leaves out, held against diffusers' own pipeline."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline

from fluxserve.core.request import ImageInput, ImageRequest, Task
from fluxserve.engines.local.cost import Coefficients
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.plan import plan
from fluxserve.engines.local.start import Setup
from fluxserve.flux.folder import embedded_folder
from fluxserve.flux.spec import FLUX_DEV
from tests.engines.local.test_plan import EDIT

START = replace(EDIT, task="image_to_image")


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 10, 20, 28, 40, 50])
def test_strength_leaves_out_as_many_steps_as_in_diffusers(num_steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(num_steps)
    theirs, ours = {}, {}
    for strength in (hundredth / 100 for hundredth in range(101)):
        _, kept = FluxImg2ImgPipeline.get_timesteps(
            SimpleNamespace(scheduler=scheduler), num_steps, strength, "cpu"
        )
        theirs[strength] = num_steps - max(1, kept)  # diffusers refuses to run none
        order = replace(START, num_steps=num_steps, strength=strength)
        ours[strength] = plan(FLUX_DEV, order).first_step
    assert ours == theirs


@pytest.mark.parametrize(
    ("num_steps", "strength", "first"), [(28, 0.8, 5), (28, 0.95, 1), (4, 0.8, 0), (4, 0.0, 3)]
)
def test_a_started_step_is_run(num_steps: int, strength: float, first: int) -> None:
    found = plan(FLUX_DEV, replace(START, num_steps=num_steps, strength=strength))
    assert (found.first_step, len(found.steps)) == (first, num_steps - first)


def test_repainting_has_an_estimate_before_its_mask_is_fetched(tmp_path: Path) -> None:
    engine = LocalEngine("embedded", [Setup(model=embedded_folder(), spool=tmp_path)])
    engine.processes[0].cost = Coefficients(0.1, 0.0, 1e-4, 0.0)
    picture = ImageInput(url="https://pictures.test/1.png")
    request = ImageRequest(
        model="fluxserve/embedded",
        task=Task.FILL,
        prompt="a lake",
        images=(picture,),
        mask=picture,
        width=0,
        height=0,
        num_steps=8,
        guidance=2.0,
        seed=1,
    )
    seconds = engine.estimate(request)
    assert seconds is not None
    assert seconds > 8 * 0.1
    assert engine.estimate(replace(request, mask=None)) is None
