"""The cache of LoRAs: known again, bounded, never a change of what a request holds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fluxserve.engines.local.adapters import Adapters
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.spec import TransformerSpec

SPEC = TransformerSpec(
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=16,
    pooled_projection_dim=8,
    axes_dims_rope=(2, 2, 4),
)
BYTES = 2 * 4 * 16 * 4  # of one file below, in float32


def data(seed: int) -> bytes:
    torch.manual_seed(seed)
    name = "transformer.transformer_blocks.0.attn.to_q"
    return save(
        {
            f"{name}.lora_A.weight": torch.randn(4, SPEC.width),
            f"{name}.lora_B.weight": torch.randn(SPEC.width, 4),
        }
    )


def cache(bytes_max: int = 10 * BYTES) -> Adapters:
    return Adapters(SPEC, torch.device("cpu"), torch.float32, bytes_max=bytes_max)


def test_the_same_bytes_are_read_once_whatever_the_scale() -> None:
    adapters = cache()
    one, two = adapters.get(data(0), 1.0), adapters.get(data(0), 0.5)
    (a,), (b,) = one.adapter["doubles.0.image.qkv"], two.adapter["doubles.0.image.qkv"]
    assert a.down.data_ptr() == b.down.data_ptr()
    assert (a.scale, b.scale) == (1.0, 0.5)
    assert (adapters.stats.hits, adapters.stats.misses) == (1, 1)


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    adapters, path = cache(), tmp_path / "lora.safetensors"
    path.write_bytes(data(0))
    before = adapters.get(path).adapter["doubles.0.image.qkv"][0].up
    adapters.get(path)
    assert adapters.stats.hits == 1
    path.unlink()
    path.write_bytes(data(1) + b"")
    path.touch()
    after = adapters.get(path).adapter["doubles.0.image.qkv"][0].up
    assert not torch.equal(before, after)


def test_the_one_unused_for_longest_goes_first() -> None:
    adapters = cache(2 * BYTES)
    held = adapters.get(data(0))
    adapters.get(data(1))
    adapters.get(data(0))
    adapters.get(data(2))
    assert adapters.stats.size_bytes == 2 * BYTES
    adapters.get(data(0))
    assert adapters.stats.misses == 3
    adapters.get(data(1))
    assert adapters.stats.misses == 4
    assert held.adapter["doubles.0.image.qkv"][0].up.isfinite().all()


def test_what_is_larger_than_the_cache_is_used_and_not_kept() -> None:
    adapters = cache(BYTES - 1)
    assert adapters.get(data(0)).adapter
    assert adapters.stats.size_bytes == 0


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 10.5, -11.0])
def test_a_scale_out_of_bounds_is_refused(scale: float) -> None:
    with pytest.raises(WeightsError, match="scale"):
        cache().get(data(0), scale)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not there"):
        cache().get(tmp_path / "gone.safetensors")
