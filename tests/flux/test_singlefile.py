"""Published single files: read as diffusers reads them, described from their header, refused."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from diffusers.models import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.flux import singlefile
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.modules import placements
from fluxserve.flux.spec import TransformerSpec
from fluxserve.flux.weights import Model, load

WIDTH, HEAD = 256, 128
SPEC = TransformerSpec(
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=HEAD,
    num_attention_heads=2,
    joint_attention_dim=32,
    pooled_projection_dim=16,
    guidance_embeds=True,
)


def published(spec: TransformerSpec = SPEC, columns: int | None = None) -> dict[str, Tensor]:
    """A transformer of random numbers under the names it is published with.

    With `columns` its matrices have only so many of them.
    """
    chance = torch.Generator().manual_seed(0)
    width, head = spec.width, spec.attention_head_dim
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, columns or inputs), (outputs,)

    linear("img_in", spec.in_channels, width)
    linear("txt_in", spec.joint_attention_dim, width)
    conditions = {"time_in": 256, "vector_in": spec.pooled_projection_dim}
    if spec.guidance_embeds:
        conditions["guidance_in"] = 256
    for name, inputs in conditions.items():
        linear(f"{name}.in_layer", inputs, width)
        linear(f"{name}.out_layer", width, width)
    for at in range(spec.num_layers):
        for stream in ("img", "txt"):
            place = f"double_blocks.{at}.{stream}"
            linear(f"{place}_mod.lin", width, 6 * width)
            linear(f"{place}_attn.qkv", width, 3 * width)
            linear(f"{place}_attn.proj", width, width)
            shapes[f"{place}_attn.norm.query_norm.scale"] = (head,)
            shapes[f"{place}_attn.norm.key_norm.scale"] = (head,)
            linear(f"{place}_mlp.0", width, 4 * width)
            linear(f"{place}_mlp.2", 4 * width, width)
    for at in range(spec.num_single_layers):
        place = f"single_blocks.{at}"
        linear(f"{place}.modulation.lin", width, 3 * width)
        linear(f"{place}.linear1", width, 7 * width)
        linear(f"{place}.linear2", 5 * width, width)
        shapes[f"{place}.norm.query_norm.scale"] = (head,)
        shapes[f"{place}.norm.key_norm.scale"] = (head,)
    linear("final_layer.linear", width, spec.in_channels)
    linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_reads_as_diffusers_converts_it(prefix: str) -> None:
    # Diffusers' converter knows one width only, and empties what it is given.
    spec = replace(SPEC, num_layers=1, num_single_layers=2, num_attention_heads=24)
    tensors = published(spec, columns=2)
    expected = convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    found = dict(singlefile.diffusers_names(named.items()))
    same(found, expected)
    assert found.keys() == placements(spec).keys()


def test_names_of_diffusers_pass_as_they_are() -> None:
    tensors = dict(singlefile.diffusers_names(published().items()))
    same(dict(singlefile.diffusers_names(tensors.items())), tensors)


def test_an_autoencoder_reads_as_diffusers_converts_it() -> None:
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4,
              "down_block_types": ("DownEncoderBlock2D",) * 4, "latent_channels": 4,
              "up_block_types": ("UpDecoderBlock2D",) * 4, "use_quant_conv": False,
              "use_post_quant_conv": False}  # fmt: skip
    ours = AutoencoderKL(**config).state_dict()
    published_vae = {_published_vae_name(name): tensor for name, tensor in ours.items()}
    for name, tensor in published_vae.items():
        if ".attn_1." in name and tensor.dim() == 2:
            published_vae[name] = tensor[:, :, None, None]
    expected = convert_ldm_vae_checkpoint(dict(published_vae), config)
    found = dict(singlefile.diffusers_names(published_vae.items()))
    same(found, expected)
    same(found, ours)


def _published_vae_name(name: str) -> str:
    """The converse of what is tested, written out by hand."""
    side, rest = name.split(".", 1)
    parts = rest.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        level = int(parts[1]) if parts[0] == "down_blocks" else 3 - int(parts[1])
        kind = parts[0].removesuffix("_blocks")
        inner = f"block.{parts[3]}" if parts[2] == "resnets" else parts[2].removesuffix("rs")
        last = ".".join(parts[4:]).replace("conv_shortcut", "nin_shortcut")
        return f"{side}.{kind}.{level}.{inner}.{last}"
    if parts[0] == "mid_block" and parts[1] == "resnets":
        return f"{side}.mid.block_{int(parts[2]) + 1}.{'.'.join(parts[3:])}"
    if parts[0] == "mid_block":
        names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
        return f"{side}.mid.attn_1.{names[parts[3]]}.{parts[-1]}"
    return f"{side}.{rest.replace('conv_norm_out', 'norm_out')}"


def test_a_folder_with_a_published_transformer_loads_to_the_same_model(
    embedded: Model, embedded_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / embedded_folder.name
    shutil.copytree(embedded_folder, folder)
    shutil.copy(embedded_folder.parent / "defaults.json", tmp_path)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(as_published(load_file(path), embedded.spec.transformer), path)
    found = dict(load(folder, device="cpu", dtype="float32").transformer.named_parameters())
    same(found, dict(embedded.transformer.named_parameters()))


def as_published(theirs: Mapping[str, Tensor], spec: TransformerSpec) -> dict[str, Tensor]:
    """The tensors of diffusers, joined and renamed the other way round."""
    found: dict[str, Tensor] = {}
    for layer in singlefile.layers(spec):
        for leaf in ("weight", "bias"):
            names = [f"{name}.{leaf}" for name in singlefile.layer_names(layer)]
            if all(name in theirs for name in names):
                found[f"{layer}.{leaf}"] = torch.cat([theirs[name] for name in names])
    for leaf in ("weight", "bias"):
        scale, shift = found[f"final_layer.adaLN_modulation.1.{leaf}"].chunk(2)
        found[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    doubles = [f"double_blocks.{at}" for at in range(spec.num_layers)]
    places = [f"{block}.{stream}_attn" for block in doubles for stream in ("img", "txt")]
    places += [f"single_blocks.{at}" for at in range(spec.num_single_layers)]
    for place in places:
        for norm in ("query_norm", "key_norm"):
            (name,) = singlefile.layer_names(f"{place}.norm.{norm}")
            found[f"{place}.norm.{norm}.scale"] = theirs[f"{name}.weight"]
    return found


@pytest.mark.parametrize("guided", [True, False])
def test_the_header_alone_tells_the_dimensions(tmp_path: Path, guided: bool) -> None:
    spec = replace(SPEC, guidance_embeds=guided)
    save_file(published(spec), tmp_path / "flux1.safetensors")
    assert singlefile.describe(tmp_path / "flux1.safetensors") == spec


def test_files_that_are_no_transformer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match="cannot be read"):
        singlefile.describe(path)
    path.write_bytes(b"short")
    with pytest.raises(WeightsError, match="no safetensors file, or cut short"):
        singlefile.describe(path)
    path.write_bytes((16).to_bytes(8, "little") + b"not json at all!")
    with pytest.raises(WeightsError, match="header is damaged"):
        singlefile.describe(path)
    save_file({"encoder.conv_in.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"no FLUX\.1 transformer"):
        singlefile.describe(path)
    save_file(published(replace(SPEC, attention_head_dim=64, num_attention_heads=4)), path)
    with pytest.raises(WeightsError, match="heads of 64 channels"):
        singlefile.describe(path)
