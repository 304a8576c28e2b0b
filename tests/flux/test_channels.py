"""A folder whose VAE has 24 latent channels: nothing counts on the 16 of the published models."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from torch import Tensor

from fluxserve.flux import sample, weights
from fluxserve.flux.autoencoder import from_pixels
from fluxserve.flux.folder import WeightsError, inspect
from fluxserve.flux.prepare import LowRank
from fluxserve.flux.spec import Guidance
from fluxserve.flux.weights import Model

CHANNELS = 24
SIDE = 64  # px


def folder_of(package: Path, place: Path, factors: int) -> Path:
    """The text encoders of the package with a random transformer and VAE of 24 channels."""
    torch.manual_seed(5)
    folder = place / "checkpoint"
    ignored = shutil.ignore_patterns("*.safetensors")
    for item in package.iterdir():
        if item.is_dir():
            is_new = item.name in ("transformer", "vae")
            shutil.copytree(item, folder / item.name, ignore=ignored if is_new else None)
        else:
            shutil.copy(item, folder / item.name)
    for part in ("transformer", "vae"):
        config = json.loads((folder / part / "config.json").read_text())
        for name in ("_class_name", "_diffusers_version"):
            del config[name]
        if part == "transformer":
            config |= {"in_channels": 4 * CHANNELS, "num_layers": 1, "num_single_layers": 2}
            model = FluxTransformer2DModel(**config)
        else:
            config |= {"latent_channels": CHANNELS, "scaling_factor": 0.8, "shift_factor": 0.1}
            model = AutoencoderKL(**config)
        model.save_pretrained(folder / part)
    sidecar = json.loads((package.parent / "defaults.json").read_text())
    rows = [[0.1, 0.2, -0.1] if at % 2 else [0.0, -0.3, 0.1] for at in range(factors)]
    sidecar |= {"native_size": SIDE, "preview": {"factors": rows, "bias": [0, 0, 0]}}
    (place / "defaults.json").write_text(json.dumps(sidecar))
    return folder


@pytest.fixture(scope="module")
def folder(embedded_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(embedded_folder, tmp_path_factory.mktemp("model"), CHANNELS)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return weights.load(folder, device="cpu", dtype="float32")


def photo() -> Tensor:
    ramp = (torch.arange(SIDE) * 255 // SIDE).expand(SIDE, SIDE)
    return torch.stack([ramp, ramp.T, ramp.flip(1)], dim=-1).to(torch.uint8)


def made(model: Model, adapters: Sequence[dict[str, list[LowRank]]] = ()) -> sample.Sample:
    condition = sample.condition(
        model,
        prompt="make it sepia",
        width=SIDE,
        height=SIDE,
        num_steps=3,
        guidance=2.0,
        references=[model.autoencoder.encode(from_pixels(photo()))],
        adapters=adapters,
    )
    found = sample.begin(model, condition, 3)
    while not found.is_done:
        sample.advance(model, [found])
    return found


def test_24_channels_make_the_picture_that_diffusers_makes(model: Model, folder: Path) -> None:
    assert model.spec.transformer.in_channels == 96
    assert model.spec.guidance is Guidance.TRUE_CFG
    theirs = FluxKontextPipeline.from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    (expected,) = theirs(
        image=(photo().permute(2, 0, 1).float() / 255)[None],
        prompt="make it sepia",
        negative_prompt="",
        true_cfg_scale=2.0,
        height=SIDE,
        width=SIDE,
        max_area=SIDE * SIDE,
        _auto_resize=False,
        num_inference_steps=3,
        max_sequence_length=model.spec.text_tokens,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    found = sample.finish(model, made(model)).float() / 255
    assert (found - expected.permute(1, 2, 0)).abs().max() <= 1 / 255


def test_24_channels_have_previews_and_take_loras(model: Model) -> None:
    width = model.spec.transformer.width
    torch.manual_seed(1)
    delta = LowRank(torch.randn(width, 4) * 0.1, torch.randn(4, 7 * width) * 0.1)
    plain, dressed = made(model), made(model, [{"singles.0.fused": [delta]}])
    assert not torch.equal(plain.latents, dressed.latents)
    small = sample.glimpse(model, plain)
    assert small is not None
    assert small.shape == (SIDE // 8, SIDE // 8, 3)


def test_24_channels_without_known_factors_have_no_previews(folder: Path, model: Model) -> None:
    bare = folder.parent / "bare"
    shutil.copytree(folder, bare)
    spec = inspect(bare)
    assert spec.native_size is None
    assert spec.preview is None
    blind = replace(model, spec=replace(model.spec, preview=None))
    assert sample.glimpse(blind, made(blind)) is None


def test_factors_of_another_vae_are_refused(embedded_folder: Path, tmp_path: Path) -> None:
    folder = folder_of(embedded_folder, tmp_path, 16)
    with pytest.raises(WeightsError, match="factors for 16 channels, this VAE has 24"):
        inspect(folder)
