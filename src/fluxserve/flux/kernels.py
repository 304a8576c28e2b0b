"""The elementwise work between the matrix products, one function each.

In float32 the quickest form is used, which differs from the reference in the last bit. In shorter
types every intermediate value is rounded where the reference rounds it, so that results are equal
bit by bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-6
HALF_MAX = 65504.0  # the largest float16

# The tanh form of gelu, with a sigmoid: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))
_GELU_1 = 1.5957691216057308
_GELU_3 = 0.07135481282139852


def modulate_(x: Tensor, shift: Tensor, scale: Tensor) -> None:
    """x <- x * scale + shift, in place; `scale` is 1 + the published one."""
    if x.dtype is torch.float32:
        torch.addcmul(shift, x, scale, out=x)
    else:
        x.mul_(scale).add_(shift)


def add_gated_(x: Tensor, y: Tensor, gate: Tensor) -> None:
    """x <- x + y * gate, in place; `y` is used up."""
    if x.dtype is torch.float32:
        x.addcmul_(y, gate)
    else:
        x.add_(y.mul_(gate))
        if x.dtype is torch.float16:
            x.clamp_(-HALF_MAX, HALF_MAX)  # a few channels of FLUX grow beyond it


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, as FLUX was trained with."""
    if x.dtype is torch.float32 and x.device.type == "cpu":
        # Torch's own is four times slower on the CPU: its tanh is not vectorised well.
        inner = (x * x).mul_(_GELU_3).add_(_GELU_1).mul_(x)
        return inner.sigmoid_().mul_(x)
    return functional.gelu(x, approximate="tanh")


def norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis, without weights."""
    return functional.layer_norm(x, (x.shape[-1],), eps=EPS)


def norm_heads(qk: Tensor, weight: Tensor) -> Tensor:
    """RMS norm over the last axis of queries and keys, (N, 2, heads, D); `weight` is (2, D)."""
    size = qk.shape[-1]
    if qk.dtype is torch.float32:
        length = torch.linalg.vector_norm(qk, dim=-1, keepdim=True)
        return (qk * weight[:, None]).mul_(length.square_().mul_(1 / size).add_(EPS).rsqrt_())
    normed = (
        functional.rms_norm(x, (size,), w, EPS) for x, w in zip(qk.unbind(1), weight, strict=True)
    )
    return torch.stack(list(normed), dim=1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring channels of (.., head_dim) by complex `rotation` (.., head_dim / 2)."""
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, L, heads, head_dim) each -> (B, L, heads * head_dim); queries may be fewer than keys."""
    mixed = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    )
    return mixed.transpose(1, 2).flatten(2)
