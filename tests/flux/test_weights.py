"""What a damaged or foreign model folder is told, before anything of it is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxserve.flux import weights
from fluxserve.flux.folder import WeightsError, inspect
from fluxserve.flux.folder import embedded_folder as package_folder
from fluxserve.flux.spec import Guidance

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(embedded_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(embedded_folder, tmp_path / "model")
    return tmp_path / "model"


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def drop(path: Path, name: str) -> None:
    edit_tensors(path, lambda tensors: tensors.pop(name))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "no such model folder"),
    "a single file": (
        lambda f: (shutil.rmtree(f), f.write_bytes(b"weights")),
        "model: a file, not a model folder; `fluxserve models install`",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json: missing"),
    "another pipeline": (
        lambda f: edit_json(f / "model_index.json", lambda v: v.update(_class_name="FluxFill")),
        "a FluxPipeline or a FluxKontextPipeline is needed, not FluxFill",
    ),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "vae missing"),
    "another transformer": (
        lambda f: edit_json(
            f / "transformer/config.json", lambda v: v.update(_class_name="Flux2Transformer2DModel")
        ),
        "FluxTransformer2DModel is needed, not Flux2Transformer2DModel",
    ),
    "a fill model": (
        lambda f: edit_json(f / "transformer/config.json", lambda v: v.update(in_channels=384)),
        "takes 384 channels, this VAE makes",
    ),
    "broken config": (
        lambda f: (f / "vae/config.json").write_text("{"),
        "vae/config.json: not JSON",
    ),
    "no weights": (lambda f: (f / TRANSFORMER).unlink(), r"\*.safetensors missing"),
    "half downloaded": (lambda f: cut(f / TRANSFORMER), "only part of the file"),
    "a web page": (
        lambda f: (f / TRANSFORMER).write_text("<!DOCTYPE html><html>sign in</html>"),
        "not a safetensors file",
    ),
    "a shard is missing": (
        lambda f: (f / "transformer/model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"x_embedder.weight": "model-00001-of-2.safetensors"}})
        ),
        "model-00001-of-2.safetensors missing",
    ),
    "a tensor too few": (
        lambda f: drop(f / TRANSFORMER, "x_embedder.weight"),
        "1 tensors missing, like image_in.weight",
    ),
    "half of a fused tensor": (
        lambda f: drop(f / TRANSFORMER, "transformer_blocks.0.attn.to_k.weight"),
        "1 tensors missing, like doubles.0.image.qkv.weight",
    ),
    "a tensor too many": (
        lambda f: edit_tensors(f / TRANSFORMER, lambda t: t.update(extra=torch.zeros(1))),
        "unknown tensor extra: another architecture",
    ),
    "quantized weights": (
        lambda f: edit_tensors(
            f / TRANSFORMER,
            lambda t: t.update({"x_embedder.weight": t["x_embedder.weight"].char()}),
        ),
        "x_embedder.weight is stored as I8, one of BF16, .* not quantized",
    ),
    "a text encoder of another size": (
        lambda f: edit_json(f / "text_encoder_2/config.json", lambda v: v.update(d_ff=77)),
        "text_encoder_2: .* weights and config do not belong together",
    ),
    "another shape": (
        lambda f: edit_tensors(
            f / TRANSFORMER, lambda t: t.update({"x_embedder.bias": torch.zeros(7)})
        ),
        "do not belong together",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason_before_anything_is_loaded(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> object:
        raise AssertionError("values were read")

    damage, message = DAMAGES[name]
    damage(folder)
    monkeypatch.setattr(weights, "_tensors", read)
    monkeypatch.setattr(weights, "_place", read)
    with pytest.raises(WeightsError, match=message):
        weights.load(folder, device="cpu")


def test_without_its_sidecar_a_folder_is_taken_for_what_its_configs_say(folder: Path) -> None:
    spec = inspect(folder)
    assert (spec.name, spec.edits, spec.native_size) == ("model", True, None)
    assert (spec.guidance, spec.text_tokens) == (Guidance.NONE, 256)
    assert spec.tokens(1024, 512) == 64 * 32


def test_the_package_model_says_how_it_wants_to_be_asked() -> None:
    spec = inspect(package_folder())
    assert spec.guidance is Guidance.TRUE_CFG
    assert spec.native_size
    assert spec.preview


@pytest.mark.parametrize("said", ["tpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(said: str) -> None:
    with pytest.raises(WeightsError, match="device: "):
        weights.choose_device(said)


def test_an_unknown_number_type_is_refused() -> None:
    with pytest.raises(WeightsError, match="dtype: auto, float32, bfloat16, float16, not 'int4'"):
        weights.choose_dtype("int4", torch.device("cpu"))


def test_prompts_keep_their_meaning_beside_a_transformer_in_half_precision(folder: Path) -> None:
    def louder(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith("DenseReluDense.wo.weight"):
                tensors[name] = tensors[name].float() * 300

    edit_tensors(folder / "text_encoder_2/model.safetensors", louder)
    half, exact = (weights.load(folder, device="cpu", dtype=d) for d in ("float16", "float32"))
    found, expected = (model.text.encode("a red apple") for model in (half, exact))
    assert found.tokens.dtype is found.pooled.dtype is half.dtype is torch.float16
    torch.testing.assert_close(found.tokens.float(), expected.tokens, rtol=2**-10, atol=1e-3)
    torch.testing.assert_close(found.pooled.float(), expected.pooled, rtol=2**-10, atol=1e-3)
    ids = torch.arange(1, 9)[None]
    assert not half.text.t5.half()(ids).isfinite().all()  # what would have come of it


def test_short_types_are_not_chosen_for_a_cpu() -> None:
    assert weights.choose_dtype("auto", torch.device("cpu")) is torch.float32
