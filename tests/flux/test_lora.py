"""LoRA files: every spelling means the same, equals merged weights, mixes freely, is checked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from fluxserve.flux import lora, packed
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.packed import Row
from fluxserve.flux.prepare import Adapter, prepare
from fluxserve.flux.spec import TransformerSpec
from tests.flux.conftest import Asked, Pair, ask, pair

SPEC = TransformerSpec(
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=48,
    pooled_projection_dim=24,
    guidance_embeds=True,
    axes_dims_rope=(8, 12, 12),
)
WIDTH = SPEC.width
Weights = dict[str, tuple[Tensor, Tensor]]  # diffusers' layer -> (down, up)

# One of every kind of layer: diffusers' name -> (inputs, outputs) in widths.
LAYERS = {
    "transformer_blocks.0.norm1.linear": (1, 6),
    "transformer_blocks.0.attn.to_q": (1, 1),
    "transformer_blocks.0.attn.to_v": (1, 1),
    "transformer_blocks.0.attn.to_out.0": (1, 1),
    "transformer_blocks.1.attn.add_k_proj": (1, 1),
    "transformer_blocks.1.attn.to_add_out": (1, 1),
    "transformer_blocks.1.ff.net.0.proj": (1, 4),
    "transformer_blocks.1.ff_context.net.2": (4, 1),
    "single_transformer_blocks.0.norm.linear": (1, 3),
    "single_transformer_blocks.0.attn.to_k": (1, 1),
    "single_transformer_blocks.0.proj_mlp": (1, 4),
    "single_transformer_blocks.1.proj_out": (5, 1),
}


def weights(seed: int = 0, rank: int = 4) -> Weights:
    chance = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, inputs * WIDTH, generator=chance) * 0.2,
            torch.randn(outputs * WIDTH, rank, generator=chance) * 0.2,
        )
        for name, (inputs, outputs) in LAYERS.items()
    }


def peft(found: Weights) -> dict[str, Tensor]:
    return {
        f"transformer.{name}.lora_{letter}.weight": tensor
        for name, both in found.items()
        for letter, tensor in zip("AB", both, strict=True)
    }


def adapter(found: Weights, scale: float = 1.0) -> Adapter:
    return lora.read(save(peft(found)), SPEC).scaled(scale)


def dressed(models: Pair, asked: Asked, *adapters: Adapter) -> Row:
    prepared = prepare(
        models.ours,
        text=asked.text,
        pooled=asked.pooled,
        positions=asked.positions,
        sigmas=torch.tensor([asked.sigma]),
        guidance=asked.guidance,
        reference=asked.reference,
        adapters=adapters,
    )
    return Row(prepared, asked.picture, 0)


def merged(found: Weights, scale: float) -> Pair:
    """The same random model, with the LoRA added to the weights of diffusers' model."""
    models = pair(SPEC)
    for name, (down, up) in found.items():
        layer = models.theirs.get_submodule(name)
        layer.weight += scale * (up @ down)
    return models


@pytest.fixture(scope="module")
def models() -> Pair:
    with torch.inference_mode():
        return pair(SPEC)


def test_a_request_with_a_lora_equals_diffusers_with_merged_weights(models: Pair) -> None:
    asked = ask(SPEC, (4, 6), text=12, references=[(3, 4)])
    found = weights()
    (with_lora,) = packed.forward(models.ours, [dressed(models, asked, adapter(found, 0.7))])
    (without,) = packed.forward(models.ours, [dressed(models, asked)])
    expected = merged(found, 0.7).expected(asked)
    assert (with_lora - without).abs().max() > 0.01
    torch.testing.assert_close(with_lora, expected, rtol=1e-4, atol=1e-5)


def test_two_loras_of_one_request_add_up(models: Pair) -> None:
    asked = ask(SPEC, (4, 4), text=8)
    one, two = weights(1), weights(2)
    (both,) = packed.forward(
        models.ours, [dressed(models, asked, adapter(one, 0.5), adapter(two, -0.3))]
    )
    once = merged(one, 0.5)
    for name, (down, up) in two.items():
        once.theirs.get_submodule(name).weight -= 0.3 * (up @ down)
    torch.testing.assert_close(both, once.expected(asked), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_different_loras_in_one_forward_equal_each_alone(dtype: torch.dtype) -> None:
    models = pair(SPEC, dtype)
    sizes = [(4, 6), (2, 4), (4, 6), (6, 2)]
    loras = [adapter(weights(1)), None, adapter(weights(2), 0.5), adapter(weights(1), -1.0)]
    rows = []
    for seed, (size, chosen) in enumerate(zip(sizes, loras, strict=True)):
        asked = ask(SPEC, size, text=8 + seed, seed=seed, dtype=dtype)
        cast = lora.Lora(chosen, 0).to(torch.device("cpu"), dtype).deltas if chosen else None
        rows.append(dressed(models, asked, *([cast] if cast else [])))
    together = packed.forward(models.ours, rows)
    for row, found in zip(rows, together, strict=True):
        (alone,) = packed.forward(models.ours, [row])
        if dtype is torch.bfloat16:
            assert torch.equal(found, alone)
        else:
            torch.testing.assert_close(found, alone, rtol=0, atol=2e-6)


def test_base_weights_are_never_touched(models: Pair) -> None:
    before = {name: tensor.clone() for name, tensor in models.ours.named_parameters()}
    packed.forward(
        models.ours, [dressed(models, ask(SPEC, (2, 2), text=4), adapter(weights(), 2.0))]
    )
    for name, tensor in models.ours.named_parameters():
        assert torch.equal(tensor, before[name])


# --- spellings ------------------------------------------------------------------------------------

BFL = {
    "transformer_blocks.0.norm1.linear": "double_blocks.0.img_mod.lin",
    "transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj",
    "transformer_blocks.1.attn.to_add_out": "double_blocks.1.txt_attn.proj",
    "transformer_blocks.1.ff.net.0.proj": "double_blocks.1.img_mlp.0",
    "transformer_blocks.1.ff_context.net.2": "double_blocks.1.txt_mlp.2",
    "single_transformer_blocks.0.norm.linear": "single_blocks.0.modulation.lin",
    "single_transformer_blocks.1.proj_out": "single_blocks.1.linear2",
}


def equal(one: Adapter, two: Adapter) -> None:
    assert one.keys() == two.keys()
    for layer, parts in one.items():
        for a, b in zip(parts, two[layer], strict=True):
            assert (a.scale, a.start, a.end) == (b.scale, b.start, b.end), layer
            assert torch.equal(a.down, b.down)
            assert torch.equal(a.up, b.up)


@pytest.mark.parametrize(
    ("prefix", "down", "up"),
    [
        ("transformer.", "lora_A.weight", "lora_B.weight"),
        ("", "lora_A.weight", "lora_B.weight"),
        ("base_model.model.", "lora_A.default.weight", "lora_B.default.weight"),
        ("transformer.", "lora.down.weight", "lora.up.weight"),
        ("diffusion_model.", "lora_down.weight", "lora_up.weight"),
    ],
)
def test_spellings_with_dots_mean_the_same(prefix: str, down: str, up: str) -> None:
    found = weights()
    tensors = {f"{prefix}{name}.{down}": both[0] for name, both in found.items()}
    tensors |= {f"{prefix}{name}.{up}": both[1] for name, both in found.items()}
    equal(lora.read(save(tensors), SPEC).deltas, adapter(found))


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_"])
def test_kohya_names_mean_the_same(prefix: str) -> None:
    found = {name: both for name, both in weights().items() if name in BFL}
    tensors = {}
    for name, (down, up) in found.items():
        spelled = prefix + BFL[name].replace(".", "_")
        tensors[f"{spelled}.lora_down.weight"] = down
        tensors[f"{spelled}.lora_up.weight"] = up
        tensors[f"{spelled}.alpha"] = torch.tensor(4.0)
    equal(lora.read(save(tensors), SPEC).deltas, adapter(found))


def test_fused_query_key_value_equals_three_with_one_down(models: Pair) -> None:
    chance = torch.Generator().manual_seed(3)
    down = torch.randn(4, WIDTH, generator=chance) * 0.2
    up = torch.randn(7 * WIDTH, 4, generator=chance) * 0.2
    fused = {
        "lora_unet_single_blocks_0_linear1.lora_down.weight": down,
        "lora_unet_single_blocks_0_linear1.lora_up.weight": up,
    }
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    pieces = dict(zip(parts, up.tensor_split((WIDTH, 2 * WIDTH, 3 * WIDTH)), strict=True))
    apart: Weights = {
        f"single_transformer_blocks.0.{name}": (down, piece) for name, piece in pieces.items()
    }
    asked = ask(SPEC, (4, 4), text=6)
    one = lora.read(save(fused), SPEC).deltas
    (found,) = packed.forward(models.ours, [dressed(models, asked, one)])
    torch.testing.assert_close(found, merged(apart, 1.0).expected(asked), rtol=1e-4, atol=1e-5)


def test_alpha_over_rank_is_the_scale_of_a_file() -> None:
    tensors = peft(weights(rank=8))
    name = "transformer_blocks.0.attn.to_q"
    tensors[f"transformer.{name}.alpha"] = torch.tensor(2.0)
    found = lora.read(save(tensors), SPEC)
    parts = found.deltas["doubles.0.image.qkv"]
    assert {(part.start, part.scale) for part in parts} == {(0, 0.25), (2 * WIDTH, 1.0)}
    assert found.scaled(3.0)["doubles.0.image.qkv"][0].scale == 3 * parts[0].scale


def test_scales_in_the_metadata_of_a_file_count(tmp_path: Path) -> None:
    said = {"transformer.lora_alpha": 2, "transformer.r": 4,
            "transformer.alpha_pattern": {"attn.to_q": 8}}  # fmt: skip
    path = tmp_path / "lora.safetensors"
    save_file(peft(weights()), path, metadata={"lora_adapter_metadata": json.dumps(said)})
    for source in (path, path.read_bytes()):
        parts = lora.read(source, SPEC).deltas["doubles.0.image.qkv"]
        assert {(part.start, part.scale) for part in parts} == {(0, 2.0), (2 * WIDTH, 0.5)}


def test_text_encoder_layers_are_counted_and_left_out() -> None:
    tensors = peft(weights())
    tensors["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(4, 8)
    tensors["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.zeros(8, 4)
    found = lora.read(save(tensors), SPEC)
    assert found.text_layers == 1
    equal(found.deltas, adapter(weights()))


# --- refusals -------------------------------------------------------------------------------------

Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": torch.zeros(1)}, "no part of a LoRA"),
        ({}, "no LoRA layers"),
        ({"lora_te1_x.lora_down.weight": torch.zeros(1, 1)}, "only text encoder layers"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, WIDTH)}, "only one of its two matrices"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 8), f"{Q}.lora_B.weight": torch.zeros(8, 4)},
         "made for another architecture"),
        ({f"{Q}x.lora_A.weight": torch.zeros(4, 8), f"{Q}x.lora_B.weight": torch.zeros(8, 4)},
         "unknown: made for another architecture"),
        ({f"{Q}.lora_A.weight": torch.full((4, WIDTH), torch.nan),
          f"{Q}.lora_B.weight": torch.zeros(WIDTH, 4)}, "no numbers"),
        ({f"{Q}.lora_A.weight": torch.zeros(600, WIDTH),
          f"{Q}.lora_B.weight": torch.zeros(WIDTH, 600)}, "rank 600, 1 to 512"),
        ({"transformer.x_embedder.lora_A.weight": torch.zeros(4, 64),
          "transformer.x_embedder.lora_B.weight": torch.zeros(WIDTH, 4)}, "all requests share"),
        ({f"{Q}.lokr_w1": torch.zeros(1)}, "a LoKr"),
        ({f"{Q}.hada_w1_a": torch.zeros(1)}, "a LoHa"),
        ({f"{Q}.lora_magnitude_vector": torch.zeros(1)}, "a DoRA"),
        ({"double_blocks.0.processor.qkv_lora1.down.weight": torch.zeros(1)}, "an XLabs adapter"),
        ({"diffusion_model.img_in.diff": torch.zeros(1)}, "a full difference"),
    ],
)  # fmt: skip
def test_what_is_no_lora_for_this_model_is_refused(
    tensors: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        lora.read(save(tensors), SPEC)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    data = save(peft(weights()))
    path = tmp_path / "lora.safetensors"
    for wrong in (b"", b"MZ", data[: len(data) // 2]):
        path.write_bytes(wrong)
        for source in (wrong, path):
            with pytest.raises(WeightsError, match="no safetensors file, or a damaged one"):
                lora.read(source, SPEC)


def test_a_lora_of_a_larger_model_is_refused() -> None:
    larger = replace(SPEC, num_attention_heads=4)
    with pytest.raises(WeightsError, match="made for another architecture"):
        lora.read(save(peft(weights())), larger)
