"""Noise levels and the Euler step, computed as diffusers' flow-matching Euler scheduler does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fluxserve.flux.spec import ScheduleSpec


def shift(image_tokens: int, spec: ScheduleSpec) -> float:
    """How far noise levels are pushed up for so many picture tokens, references not counted."""
    slope = (spec.max_shift - spec.base_shift) / (spec.max_image_seq_len - spec.base_image_seq_len)
    return image_tokens * slope + (spec.base_shift - slope * spec.base_image_seq_len)


def sigmas(num_steps: int, image_tokens: int, spec: ScheduleSpec) -> Tensor:
    """(num_steps + 1,) float32 noise levels on the CPU, from 1.0 down to 0.0."""
    stride = (1.0 / num_steps - 1.0) / max(num_steps - 1, 1)
    levels = [1.0 + at * stride for at in range(num_steps)]
    if num_steps > 1:
        levels[-1] = 1.0 / num_steps
    even = torch.tensor(levels, dtype=torch.float64).float()
    if spec.use_dynamic_shifting:
        factor = math.exp(shift(image_tokens, spec))
        pushed = factor / (factor + (1.0 / even - 1.0))
    else:
        pushed = spec.shift * even / (1.0 + (spec.shift - 1.0) * even)
    return torch.cat([pushed, torch.zeros(1)])


def euler(latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step down: computed in float32, returned in the dtype of `velocity`."""
    return (latents.float() + (sigma_next - sigma) * velocity).to(velocity.dtype)


def clean(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The picture the model has in mind at this noise level, in float32: x - sigma * v."""
    return latents.float() - sigma * velocity.float()


def extrapolated(
    velocity: Tensor, before: Tensor, sigma: Tensor, sigma_before: Tensor, sigma_now: Tensor
) -> Tensor:
    """The velocity at `sigma_now` on the straight line through two that were computed."""
    slope = (velocity - before) / (sigma - sigma_before)
    return velocity + (sigma_now - sigma) * slope


def noised(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """A clean picture at noise level `sigma`, in the dtype of `noise`."""
    return (sigma * noise + (1.0 - sigma) * latents).to(noise.dtype)
