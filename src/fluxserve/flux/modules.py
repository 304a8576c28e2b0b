"""The layers of the FLUX transformer, fused for serving; weights are read by their published names.

Query, key and value of a stream are one matrix, and so are query, key, value and the MLP of a
single-stream block. `placements` says where each tensor of a diffusers checkpoint goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from fluxserve.flux.spec import TransformerSpec

MLP_RATIO = 4
TIME_CHANNELS = 256  # of the sinusoids that encode a noise level or a guidance scale

_Pairs: TypeAlias = "Iterator[tuple[str, Placement]]"


class Embedder(nn.Module):
    """Two linears with a SiLU between: (B, n) -> (B, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(channels, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.up(x)))  # type: ignore[no-any-return]


class Stream(nn.Module):
    """The weights that one stream (text or image) has in a double block."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_qk = nn.Parameter(torch.ones(2 * head_dim))  # of queries, then of keys
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, MLP_RATIO * width)
        self.down = nn.Linear(MLP_RATIO * width, width)


class DoubleBlock(nn.Module):
    """Text and image with weights of their own, joined in attention."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.text = Stream(width, head_dim)
        self.image = Stream(width, head_dim)


class SingleBlock(nn.Module):
    """Text and image in one sequence; attention and MLP side by side."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.fused = nn.Linear(width, (3 + MLP_RATIO) * width)  # query, key, value, MLP
        self.norm_qk = nn.Parameter(torch.ones(2 * head_dim))  # of queries, then of keys
        self.out = nn.Linear((1 + MLP_RATIO) * width, width)


def _parts(spec: TransformerSpec) -> Mapping[str, slice]:
    """Where the modulation of each block lies among that of all blocks, counted in widths."""
    counts = [(f"doubles.{at}.{s}", 6) for at in range(spec.num_layers) for s in ("image", "text")]
    counts += [(f"singles.{at}", 3) for at in range(spec.num_single_layers)]
    found, start = {}, 0
    for name, count in [*counts, ("out", 2)]:
        found[name] = slice(start, start + count)
        start += count
    return found


class FluxTransformer(nn.Module):
    """The parameters of the transformer; `packed.forward` computes with them."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        width, head_dim = spec.width, spec.attention_head_dim
        self.spec = spec
        self.time = Embedder(TIME_CHANNELS, width)
        self.guidance = Embedder(TIME_CHANNELS, width) if spec.guidance_embeds else None
        self.pooled = Embedder(spec.pooled_projection_dim, width)
        self.image_in = nn.Linear(spec.in_channels, width)
        self.text_in = nn.Linear(spec.joint_attention_dim, width)
        self.doubles = nn.ModuleList(DoubleBlock(width, head_dim) for _ in range(spec.num_layers))
        self.singles = nn.ModuleList(
            SingleBlock(width, head_dim) for _ in range(spec.num_single_layers)
        )
        self.modulation = nn.Linear(width, 2 * width)  # scale, shift
        self.out = nn.Linear(width, spec.in_channels)
        self.parts = _parts(spec)

    def modulation_layers(self) -> Iterator[tuple[str, nn.Linear]]:
        """The linears that make the shifts, scales and gates, by block, in the order of parts."""
        for at, block in enumerate(self.doubles):
            assert isinstance(block, DoubleBlock)
            yield f"doubles.{at}.image", block.image.modulation
            yield f"doubles.{at}.text", block.text.modulation
        for at, single in enumerate(self.singles):
            assert isinstance(single, SingleBlock)
            yield f"singles.{at}", single.modulation
        yield "out", self.modulation

    @property
    def dtype(self) -> torch.dtype:
        return self.modulation.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.modulation.weight.device


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a published tensor goes: the parameter, and which of its rows."""

    parameter: str
    start: int = 0
    end: int | None = None  # None: to the last row


def placements(spec: TransformerSpec) -> Mapping[str, Placement]:
    """Published tensor name (diffusers layout) -> where it goes in FluxTransformer."""
    return dict(_placements(spec))


def _linear(theirs: str, ours: str, start: int = 0, end: int | None = None) -> _Pairs:
    for leaf in ("weight", "bias"):
        yield f"{theirs}.{leaf}", Placement(f"{ours}.{leaf}", start, end)


def _placements(spec: TransformerSpec) -> _Pairs:
    embedder = "time_text_embed"
    conditions = [("timestep_embedder", "time"), ("text_embedder", "pooled")]
    if spec.guidance_embeds:
        conditions.append(("guidance_embedder", "guidance"))
    for theirs, ours in conditions:
        yield from _linear(f"{embedder}.{theirs}.linear_1", f"{ours}.up")
        yield from _linear(f"{embedder}.{theirs}.linear_2", f"{ours}.down")
    yield from _linear("x_embedder", "image_in")
    yield from _linear("context_embedder", "text_in")
    yield from _linear("norm_out.linear", "modulation")
    yield from _linear("proj_out", "out")
    for index in range(spec.num_layers):
        yield from _double(f"transformer_blocks.{index}", f"doubles.{index}", spec)
    for index in range(spec.num_single_layers):
        yield from _single(f"single_transformer_blocks.{index}", f"singles.{index}", spec)


def _double(theirs: str, ours: str, spec: TransformerSpec) -> _Pairs:
    width, head_dim = spec.width, spec.attention_head_dim
    streams = {
        "image": ("norm1", "to_q to_k to_v", "norm_q norm_k", "to_out.0", "ff"),
        "text": (
            "norm1_context",
            "add_q_proj add_k_proj add_v_proj",
            "norm_added_q norm_added_k",
            "to_add_out",
            "ff_context",
        ),
    }
    for stream, (modulation, projections, norms, out, mlp) in streams.items():
        place = f"{ours}.{stream}"
        yield from _linear(f"{theirs}.{modulation}.linear", f"{place}.modulation")
        for at, name in enumerate(projections.split()):
            rows = (at * width, (at + 1) * width)
            yield from _linear(f"{theirs}.attn.{name}", f"{place}.qkv", *rows)
        for at, name in enumerate(norms.split()):
            rows = (at * head_dim, (at + 1) * head_dim)
            yield f"{theirs}.attn.{name}.weight", Placement(f"{place}.norm_qk", *rows)
        yield from _linear(f"{theirs}.attn.{out}", f"{place}.out")
        yield from _linear(f"{theirs}.{mlp}.net.0.proj", f"{place}.up")
        yield from _linear(f"{theirs}.{mlp}.net.2", f"{place}.down")


def _single(theirs: str, ours: str, spec: TransformerSpec) -> _Pairs:
    width, head_dim = spec.width, spec.attention_head_dim
    yield from _linear(f"{theirs}.norm.linear", f"{ours}.modulation")
    for at, name in enumerate(("to_q", "to_k", "to_v")):
        yield from _linear(f"{theirs}.attn.{name}", f"{ours}.fused", at * width, (at + 1) * width)
    yield from _linear(f"{theirs}.proj_mlp", f"{ours}.fused", 3 * width)
    for at, name in enumerate(("norm_q", "norm_k")):
        rows = (at * head_dim, (at + 1) * head_dim)
        yield f"{theirs}.attn.{name}.weight", Placement(f"{ours}.norm_qk", *rows)
    yield from _linear(f"{theirs}.proj_out", f"{ours}.out")
