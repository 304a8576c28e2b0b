"""The checkpoints that Black Forest Labs publishes as one file, under the names of diffusers.

A transformer (`flux1-*.safetensors`) is read as if it lay in a diffusers folder; so is the VAE
(`ae.safetensors`). Nothing is rewritten on the disk: names and row orders change while reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fluxserve.flux.folder import WeightsError
from fluxserve.flux.spec import TransformerSpec

# Checkpoints made for other programs put the transformer under a name of its own.
PREFIX = "model.diffusion_model."
# What the heads' axes turn by is in no tensor; every published FLUX.1 has this.
AXES = {128: (16, 56, 56)}
HEADER_BYTES_MAX = 100 * 2**20

_WHOLE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def layer_names(layer: str) -> Sequence[str]:
    """Diffusers' layers that one published layer holds, in the order of its rows; none: unknown."""
    if layer in _WHOLE:
        return (_WHOLE[layer],)
    found = _BLOCK.fullmatch(layer)
    if found is None:
        return ()
    kind, index, rest = found.groups()
    if kind == "double":
        return tuple(f"transformer_blocks.{index}.{name}" for name in _DOUBLE.get(rest, ()))
    return tuple(f"single_transformer_blocks.{index}.{name}" for name in _SINGLE.get(rest, ()))


def layers(spec: TransformerSpec) -> Iterator[str]:
    """The published layers of a transformer, without the norms of heads, as adapters name them."""
    yield from _WHOLE
    for kind, count, table in (
        ("double", spec.num_layers, _DOUBLE),
        ("single", spec.num_single_layers, _SINGLE),
    ):
        for index in range(count):
            yield from (f"{kind}_blocks.{index}.{name}" for name in table if "_norm" not in name)


def diffusers_names(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Rename and cut the tensors of a published file; those of diffusers pass as they are."""
    for name, tensor in tensors:
        name = name.removeprefix(PREFIX)
        layer, _, leaf = name.rpartition(".")
        if name.startswith(("decoder.", "encoder.")):
            renamed = _vae_name(name)
            # Published as a convolution of one pixel, which is a linear.
            is_linear = ".attentions." in renamed and tensor.dim() == 4
            yield renamed, tensor[:, :, 0, 0] if is_linear else tensor
            continue
        names = layer_names(layer)
        if not names:
            yield name, tensor
            continue
        leaf = "weight" if leaf == "scale" else leaf
        if layer == "final_layer.adaLN_modulation.1":
            shift, scale = tensor.chunk(2)
            tensor = torch.cat([scale, shift])
        for theirs, piece in zip(names, _cut(tensor, len(names)), strict=True):
            yield f"{theirs}.{leaf}", piece


def _cut(tensor: Tensor, count: int) -> Sequence[Tensor]:
    """Query, key and value are a third each; beside an MLP, which is four of them, a seventh."""
    if count < 4:
        return tensor.chunk(count)
    width = tensor.shape[0] // 7
    return tensor.tensor_split((width, 2 * width, 3 * width))


# --- the autoencoder ------------------------------------------------------------------------------

_LEVELS = 4  # of the published VAE: the decoder counts them from the other end
_VAE_PARTS = (
    (r"\bnorm_out\b", "conv_norm_out"),
    (r"\bmid\.block_1\b", "mid_block.resnets.0"),
    (r"\bmid\.block_2\b", "mid_block.resnets.1"),
    (r"\bmid\.attn_1\.norm\b", "mid_block.attentions.0.group_norm"),
    (r"\bmid\.attn_1\.proj_out\b", "mid_block.attentions.0.to_out.0"),
    (r"\bmid\.attn_1\.(q|k|v)\b", r"mid_block.attentions.0.to_\1"),
    (r"\bdown\.(\d)\.block\.(\d)\b", r"down_blocks.\1.resnets.\2"),
    (r"\bdown\.(\d)\.downsample\b", r"down_blocks.\1.downsamplers.0"),
    (r"\bup\.(\d)\.block\.(\d)\b", r"up_blocks.\1.resnets.\2"),
    (r"\bup\.(\d)\.upsample\b", r"up_blocks.\1.upsamplers.0"),
    (r"\bnin_shortcut\b", "conv_shortcut"),
)


def _vae_name(name: str) -> str:
    if "_blocks." in name or "mid_block." in name or "conv_norm_out" in name:
        return name
    for pattern, theirs in _VAE_PARTS:
        name = re.sub(pattern, theirs, name)
    return re.sub(
        r"\bup_blocks\.(\d)", lambda found: f"up_blocks.{_LEVELS - 1 - int(found[1])}", name
    )


# --- a file that somebody has -------------------------------------------------------------------


def describe(path: Path) -> TransformerSpec:
    """The dimensions of a published transformer, from the header of its file alone."""
    shapes = _shapes(path)
    try:
        head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
        width, channels = shapes["img_in.weight"]
        text, pooled = shapes["txt_in.weight"][1], shapes["vector_in.in_layer.weight"][1]
    except KeyError as error:
        raise WeightsError(
            f"{path.name}: no FLUX.1 transformer as Black Forest Labs publishes it"
            f" ({error.args[0]} is missing)"
        ) from None
    if head not in AXES:
        raise WeightsError(f"{path.name}: heads of {head} channels are of no published FLUX.1")
    return TransformerSpec(
        in_channels=channels,
        num_layers=_count(shapes, "double_blocks"),
        num_single_layers=_count(shapes, "single_blocks"),
        attention_head_dim=head,
        num_attention_heads=width // head,
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        guidance_embeds="guidance_in.in_layer.weight" in shapes,
        axes_dims_rope=AXES[head],
    )


def _shapes(path: Path) -> Mapping[str, Sequence[int]]:
    """Name -> shape, of the tensors of the transformer."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(HEADER_BYTES_MAX, path.stat().st_size - 8):
                raise WeightsError(f"{path.name}: no safetensors file, or cut short")
            header = json.loads(file.read(length))
        return {
            name.removeprefix(PREFIX): tuple(entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError:
        raise WeightsError(f"{path.name}: cannot be read") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{path.name}: its header is damaged; download it again") from None


def _count(shapes: Mapping[str, Sequence[int]], blocks: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{blocks}.")})
