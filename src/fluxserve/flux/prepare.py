"""What of a request stays the same for all its steps, computed once when it comes in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fluxserve.flux.modules import TIME_CHANNELS, FluxTransformer

ROTARY_BASE = 10_000.0


@dataclass(frozen=True, slots=True)
class LowRank:
    """A delta to outputs of a linear layer: y[:, start:end] += scale * (x @ down) @ up."""

    down: Tensor  # (n_in, rank)
    up: Tensor  # (rank, end - start)
    scale: float = 1.0
    start: int = 0
    end: int | None = None  # None: to the last output

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add what the delta makes of `x` (N, n_in) to `y` (N, n_out), in place."""
        y[:, self.start : self.end].addmm_(x @ self.down, self.up, alpha=self.scale)


Adapter = Mapping[str, Sequence[LowRank]]  # by the name of a linear of FluxTransformer


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What one row of a request is for all of its steps."""

    text: Tensor  # (T, width), embedded
    reference: Tensor  # (R, width), embedded; R may be 0
    rotation: Tensor  # (T + L + R, head_dim / 2) complex64, L tokens of the picture being made
    modulation: Tensor  # (steps, parts, width), blocks as in FluxTransformer.parts
    adapters: Sequence[Adapter] = ()


def prepare(
    model: FluxTransformer,
    *,
    text: Tensor,
    pooled: Tensor,
    positions: Tensor,
    sigmas: Tensor,
    guidance: float | None = None,
    reference: Tensor | None = None,
    adapters: Sequence[Adapter] = (),
    turns: Tensor | None = None,
) -> Prepared:
    """Embed everything about a row that no step changes.

    `text` is (T, joint_attention_dim), `pooled` (P,), `reference` (R, in_channels), `sigmas` the
    noise levels of the steps, `positions` (T + L + R, 3) in the order text, picture, references.
    `turns` is their `rotation`, where it is known already.
    """
    assert (guidance is not None) == (model.guidance is not None), "guidance does not fit the model"
    dtype, device = model.dtype, model.device
    if reference is None:
        embedded = torch.zeros(0, model.spec.width, dtype=dtype, device=device)
    else:
        embedded = model.image_in(reference.to(device, dtype))
    return Prepared(
        text=model.text_in(text.to(device, dtype)),
        reference=embedded,
        rotation=rotation(positions, model.spec.axes_dims_rope).to(device)
        if turns is None
        else turns,
        modulation=modulations(model, sigmas, guidance, pooled, adapters),
        adapters=adapters,
    )


def rotation(positions: Tensor, axes: Sequence[int]) -> Tensor:
    """(N, axes) positions -> (N, head_dim / 2) complex64: how far channel pairs turn."""
    parts = []
    for at, channels in enumerate(axes):
        even = torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device)
        angles = torch.outer(positions[:, at].double(), 1.0 / ROTARY_BASE ** (even / channels))
        parts.append(torch.complex(angles.cos().float(), angles.sin().float()))
    return torch.cat(parts, dim=1)


def modulations(
    model: FluxTransformer,
    sigmas: Tensor,
    guidance: float | None,
    pooled: Tensor,
    adapters: Sequence[Adapter] = (),
) -> Tensor:
    """(levels, parts, width): the shifts, scales and gates of all blocks. `pooled` is (P,).

    In every block shifts come before their scales, and a scale is kept as 1 + scale. A guidance is
    given exactly where the model has an input for it.
    """
    dtype, width, device_type = model.dtype, model.spec.width, model.device.type
    # The reference rounds the noise level to the model's dtype between the two factors.
    levels = ((sigmas.to(model.device) * 1000.0).to(dtype) / 1000.0) * 1000.0
    pooled_part = model.pooled(pooled.to(model.device, dtype)[None])
    guided = None
    if model.guidance is not None:
        scale = torch.tensor([guidance], device=model.device).to(dtype) * 1000.0
        guided = model.guidance(_sinusoids(scale).to(dtype))
    # In short types the CPU rounds a product of several rows otherwise than that of one: there, and
    # only there, level by level.
    exact = device_type == "cpu" and dtype is not torch.float32
    steps = []
    for some in levels.tensor_split(len(levels) if exact else 1):
        hidden = model.time(_sinusoids(some).to(dtype))
        hidden = hidden if guided is None else hidden + guided
        active = functional.silu(hidden + pooled_part)
        blocks = [
            torch.unflatten(_adapted(layer, name, active, adapters), 1, (-1, width))
            for name, layer in model.modulation_layers()
        ]
        blocks[-1] = blocks[-1].flip(1)  # the last layer was published with its scale first
        steps.append(torch.cat(blocks, dim=1))
    found = torch.cat(steps)
    for part in model.parts.values():
        for at in range(part.start + 1, part.stop, 3):
            found[:, at] += 1
    return found


def _adapted(layer: nn.Module, name: str, x: Tensor, adapters: Sequence[Adapter]) -> Tensor:
    """The linear that modulates block `name` and, where they know it, the adapters."""
    y: Tensor = layer(x)
    for adapter in adapters:
        for delta in adapter.get(f"{name}.modulation", ()):
            delta.add_to(y, x)
    return y


def _sinusoids(levels: Tensor) -> Tensor:
    """(S,) -> (S, 256) float32: cosines, then sines."""
    half = TIME_CHANNELS // 2
    at = torch.arange(half, dtype=torch.float32, device=levels.device)
    angles = levels.float()[:, None] * torch.exp(-math.log(10_000) * at / half)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)
