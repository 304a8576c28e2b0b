"""A published file as the transformer of a folder: linked or copied whole, or nothing is left."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxserve.flux import weights
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.install import install
from fluxserve.flux.spec import TransformerSpec
from tests.flux.folders import make_folder
from tests.flux.test_singlefile import SPEC, published

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(embedded_folder: Path, tmp_path: Path) -> Path:
    """A small model without its transformer."""
    made = make_folder(embedded_folder, tmp_path / "model", "dev")
    shutil.rmtree(made / "transformer")
    return made


@pytest.fixture
def spec(folder: Path) -> TransformerSpec:
    """One that goes with the folder's text encoders."""
    text, pooled = (
        json.loads((folder / part / "config.json").read_text())[name]
        for part, name in (("text_encoder_2", "d_model"), ("text_encoder", "hidden_size"))
    )
    sizes = {"joint_attention_dim": text, "pooled_projection_dim": pooled}
    return replace(SPEC, num_layers=1, num_single_layers=1, num_attention_heads=1, **sizes)


@pytest.fixture
def file(spec: TransformerSpec, tmp_path: Path) -> Path:
    path = tmp_path / "flux1-dev.safetensors"
    save_file(published(spec), path)
    return path


def test_a_published_file_is_linked_and_the_folder_can_be_loaded(
    file: Path, folder: Path, spec: TransformerSpec
) -> None:
    assert install(file, folder) == spec
    assert os.path.samefile(folder / WEIGHTS, file)
    assert not (folder / WEIGHTS).is_symlink()
    model = weights.load(folder, device="cpu", dtype="float32")
    assert model.spec.transformer == spec
    found = model.transformer.get_parameter("image_in.weight")
    assert torch.equal(found, load_file(file)["img_in.weight"])


def test_what_a_link_of_a_download_cache_names_is_taken(file: Path, folder: Path) -> None:
    cache = file.parent / "snapshots" / "1"
    cache.mkdir(parents=True)
    named = cache / "flux1-dev.safetensors"
    named.symlink_to(Path("../..") / file.name)
    install(named, folder)
    shutil.rmtree(cache)
    assert os.path.samefile(folder / WEIGHTS, file)
    weights.check(folder)


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr("os.link", fail)
    monkeypatch.setattr("fluxserve.flux.install.CHUNK_BYTES", 2**20)


@pytest.mark.usefixtures("no_links")
def test_from_another_disk_it_is_copied_and_the_way_is_told(file: Path, folder: Path) -> None:
    told: list[tuple[int, int]] = []
    install(file, folder, lambda *now: told.append(now))
    assert (folder / WEIGHTS).read_bytes() == file.read_bytes()
    assert sorted(path.name for path in (folder / "transformer").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    size = file.stat().st_size
    assert len(told) == -(-size // 2**20) > 1
    assert told[-1] == (size, size)


@pytest.mark.usefixtures("no_links")
def test_a_copy_that_is_broken_off_leaves_nothing(file: Path, folder: Path) -> None:
    def stop(done_bytes: int, total_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(file, folder, stop)
    assert not (folder / "transformer").exists()
    install(file, folder)


def fewer(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop("final_layer.linear.bias")
    save_file(tensors, path)


def whole_checkpoint(path: Path) -> None:
    save_file({**load_file(path), "vae.encoder.conv_in.weight": torch.zeros(1)}, path)


def in_integers(path: Path) -> None:
    tensors = load_file(path)
    save_file({**tensors, "img_in.weight": tensors["img_in.weight"].char()}, path)


def for_filling(path: Path) -> None:
    tensors = load_file(path)
    save_file({**tensors, "img_in.weight": torch.zeros(128, 384)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (fewer, "1 tensors missing, like out.bias"),
        (whole_checkpoint, r"unknown tensor vae\.encoder"),
        (in_integers, "stored as I8.* not quantized"),
        (for_filling, "Fill, Depth, Canny and Redux models are not supported"),
        (Path.unlink, "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_leaves_nothing(
    file: Path, folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(file)
    with pytest.raises(WeightsError, match=message):
        install(file, folder)
    assert not (folder / "transformer").exists()


def test_a_folder_needs_its_other_parts_and_no_transformer(file: Path, folder: Path) -> None:
    (folder / "transformer").mkdir()
    install(file, folder)
    with pytest.raises(WeightsError, match="model: has a transformer already"):
        install(file, folder)
    assert os.path.samefile(folder / WEIGHTS, file)
    shutil.rmtree(folder / "vae")
    with pytest.raises(WeightsError, match="model: vae missing; download them first"):
        install(file, folder)
