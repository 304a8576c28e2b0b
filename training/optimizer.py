"""Muon for the matrices inside the blocks, AdamW for everything else, under one learning rate.

Muon (Jordan et al., 2024) steps along the orthogonalised momentum; scaled as Moonlight does, its
steps have the size of AdamW's, so both follow one rate, each at its own pace. It learns more from
few steps, and a CPU run has few steps.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

# The quintic Newton-Schulz coefficients of the Muon reference.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS: Final = 5
MATCH_ADAMW: Final = 0.2
# A model this narrow bears, and a short run needs, longer steps than Moonlight's match.
MUON_PACE: Final = 3.0
# The query and key norms set how sharply a token may look at one place. They start at one, must
# about double on a grid of 8 x 8 tokens, and at the common rate that alone took thousands of steps.
SHARPNESS: Final = (
    "norm_q.weight",
    "norm_k.weight",
    "norm_added_q.weight",
    "norm_added_k.weight",
)
SHARPNESS_PACE: Final = 5.0


def orthogonalize(stack: Tensor) -> Tensor:
    """(N, R, C) -> the nearest (about) orthogonal matrices; R is at most C."""
    x: Tensor = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def shared(stack: Tensor) -> Tensor:
    """`orthogonalize`, each worker a part of the stack, which all of them hold."""
    if not dist.is_initialized():
        return orthogonalize(stack)
    rank, workers = dist.get_rank(), dist.get_world_size()
    turned = torch.zeros_like(stack)
    turned[rank::workers] = orthogonalize(stack[rank::workers])
    dist.all_reduce(turned)
    return turned


class Muon:
    """Momentum 0.95 with Nesterov's look-ahead; matrices of one shape are turned together."""

    def __init__(self, matrices: Sequence[Tensor], weight_decay: float) -> None:
        self.matrices = list(matrices)
        self.momentum = [torch.zeros_like(m) for m in matrices]
        self.weight_decay = weight_decay
        shapes: dict[tuple[int, int], list[int]] = {}
        for i, matrix in enumerate(self.matrices):
            short, long = sorted(matrix.shape)
            shapes.setdefault((short, long), []).append(i)
        self.shapes = shapes

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for (_, long), members in self.shapes.items():
            updates = []
            for i in members:
                gradient = self.matrices[i].grad
                assert gradient is not None
                self.momentum[i].lerp_(gradient, 0.05)
                ahead = gradient.lerp(self.momentum[i], 0.95)
                updates.append(ahead if ahead.shape[0] <= ahead.shape[1] else ahead.mT)
            turned = shared(torch.stack(updates).float()) * MATCH_ADAMW * long**0.5
            for i, update in zip(members, turned, strict=True):
                matrix = self.matrices[i]
                matrix.mul_(1 - rate * self.weight_decay)
                same = update.shape == matrix.shape and matrix.shape[0] <= matrix.shape[1]
                matrix.sub_(update if same else update.mT, alpha=rate)


class Optimizer:
    """Splits a model's parameters between Muon and AdamW and steps both."""

    def __init__(self, named: Sequence[tuple[str, Tensor]], weight_decay: float) -> None:
        inside = [p for n, p in named if p.ndim == 2 and "blocks." in n and "norm" not in n]
        taken = {id(p) for p in inside}
        rest = [p for _, p in named if id(p) not in taken]
        self.muon = Muon(inside, weight_decay)
        sharp = [p for n, p in named if n.endswith(SHARPNESS)]
        taken = {id(p) for p in sharp}
        small = [p for p in rest if p.ndim < 2 and id(p) not in taken]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": small, "weight_decay": 0.0},
            {"params": sharp, "weight_decay": 0.0, "pace": SHARPNESS_PACE},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)

    def step(self, rate: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = rate * group.get("pace", 1.0)
        self.adamw.step()
        self.muon.step(rate * MUON_PACE)

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        for mine, saved in zip(self.muon.momentum, state["muon"], strict=True):
            mine.copy_(saved)
