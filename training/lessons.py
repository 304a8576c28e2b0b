"""What a sample teaches: the picture under the noise, how much noise, and where it should lead."""

import random
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from training.model import Model
from training.scenes import Batch, Example, Size

# Below this noise level no sampler of a few steps asks anything.
OWN_LEVEL_MIN: Final = 0.1


def one_answer(example: Example) -> bool:
    """Whether the source says all about the target; another thing is drawn anew."""
    return example.kind not in ("text", "replace")


def own_rows(batch: Batch, share: float) -> list[int]:
    """Which samples start from the model's own guess: a share of those with one answer."""
    able = [i for i, example in enumerate(batch.examples) if one_answer(example)]
    return able[: round(share * len(able))]


def levels(noise: torch.Generator, count: int, early_share: float, own: Sequence[int]) -> Tensor:
    """(count,) noise levels: logit-normal, with a share drawn from 0.75 to 1, where words decide.

    Those of the samples at `own` are even over all that a sampler asks.
    """
    uniform = torch.rand(2, count, generator=noise, device=noise.device)
    normal = torch.randn(count, generator=noise, device=noise.device)
    early = uniform[0] < early_share
    drawn = torch.where(early, 0.75 + 0.25 * uniform[1], torch.sigmoid(normal))
    rows = list(own)
    drawn[rows] = OWN_LEVEL_MIN + (1 - OWN_LEVEL_MIN) * uniform[0][rows]
    return drawn


def lesson(start: Tensor, target: Tensor, level: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`start` under noise, and the velocity that leads from there to `target` at level 0.

    Where `start` is the target this is flow matching's noise - target.
    """
    noisy = (1 - level) * start + level * noise
    return noisy, noise - target + (1 - level) / level * (start - target)


@torch.no_grad()
def guess(
    model: Model,
    choose: random.Random,
    level: Tensor,
    noise: Tensor,
    text: tuple[Tensor, Tensor],
    size: Size,
    reference: Tensor,
) -> Tensor:
    """What the model makes of pure noise in one step or, every other time, in two.

    level: (B, 1, 1), where the lesson will stand; a second step lies between 1 and it.
    noise, reference and the guess: packed (B, N, TOKEN).
    """
    steps = [torch.ones_like(level)]
    if choose.random() < 0.5:
        steps.append(level + (1 - level) * choose.random())
    made = torch.zeros_like(noise)
    for at in steps:
        noisy = (1 - at) * made + at * noise
        made = noisy - at * model.velocity(noisy, at[:, 0, 0], text, size, reference).float()
    return made
