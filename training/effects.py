"""Edits of the whole picture, as exact functions: what the model has to learn to imitate.

Every function takes and gives (B, 3, H, W) in 0 to 1. Lengths are in pixels of a 128 px picture and
do not grow with the canvas, so a crop of an edited picture is the edit of the crop.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as nn
from torch import Tensor

from training.data import LUMINANCE

BLUR_SIGMA: Final = 5.3
SKETCH_SIGMA: Final = 4.0
PIXEL_BLOCK: Final = 8


def luminance(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(LUMINANCE, device=x.device, dtype=x.dtype)
    return (x * weights[:, None, None]).sum(1, keepdim=True)


def gains(x: Tensor, red: float, green: float, blue: float) -> Tensor:
    return (x * torch.tensor([red, green, blue], device=x.device)[:, None, None]).clamp(0, 1)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(2.5 * sigma)
    steps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = nn.pad(x, (radius, radius, radius, radius), mode="replicate")
    x = nn.conv2d(x, kernel[:, :, None, :], groups=x.shape[1])
    return nn.conv2d(x, kernel[:, :, :, None], groups=x.shape[1])


def differences(g: Tensor) -> Tensor:
    """Sum of the absolute steps down and right, for each channel; zero on the near edges."""
    down = nn.pad((g[..., 1:, :] - g[..., :-1, :]).abs(), (0, 0, 1, 0))
    right = nn.pad((g[..., :, 1:] - g[..., :, :-1]).abs(), (1, 0, 0, 0))
    return down + right


def gray(x: Tensor) -> Tensor:
    return luminance(x).expand_as(x)


def sepia(x: Tensor) -> Tensor:
    return gains(gray(x), 1.07, 0.86, 0.6)


def pixel(x: Tensor) -> Tensor:
    return nn.interpolate(nn.avg_pool2d(x, PIXEL_BLOCK), scale_factor=PIXEL_BLOCK, mode="nearest")


def poster(x: Tensor) -> Tensor:
    """Four levels a channel, the steps between them a little soft."""
    level = gaussian(x, 1.2) * 3
    low = level.floor()
    return ((low + torch.sigmoid((level - low - 0.5) * 12)) / 3).clamp(0, 1)


def sketch(x: Tensor) -> Tensor:
    """A colour-dodge pencil drawing with its outlines darkened.

    Slightly smoothed and lifted first: in the dark of a photograph dodging would draw only noise.
    """
    light = gaussian(luminance(x), 0.8) + 0.1
    dodge = (light / gaussian(light, SKETCH_SIGMA)).clamp(0, 1)
    edges = (differences(light) * 3.5).clamp(0, 1)
    return ((dodge - 0.8 * edges).clamp(0, 1) ** 1.3).expand_as(x)


def kuwahara(x: Tensor, radius: int) -> Tensor:
    """Each pixel becomes the mean of the calmest of the four squares that touch it."""
    side = radius + 1
    padded = nn.pad(x, (radius, radius, radius, radius), mode="replicate")
    mean = nn.avg_pool2d(padded, side, 1)
    spread = (nn.avg_pool2d(padded**2, side, 1) - mean**2).sum(1, keepdim=True)
    height, width = x.shape[-2:]
    corners = [(dy, dx) for dy in (0, radius) for dx in (0, radius)]
    means = torch.stack([mean[..., y : y + height, a : a + width] for y, a in corners])
    spreads = torch.stack([spread[..., y : y + height, a : a + width] for y, a in corners])
    best = spreads.argmin(0, keepdim=True).expand(1, *x.shape)
    return means.gather(0, best)[0]


def cartoon(x: Tensor) -> Tensor:
    """Flat, saturated areas with dark outlines."""
    flat = kuwahara(kuwahara(x, 3), 2)
    gray_ = luminance(flat)
    bold = (gray_ + (flat - gray_) * 1.4).clamp(0, 1)
    lines = (differences(gaussian(gray_, 0.7)) * 5 - 0.35).clamp(0, 1)
    return bold * (1 - lines)


EFFECTS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "gray": gray,
    "sepia": sepia,
    "invert": lambda x: 1 - x,
    "hflip": lambda x: x.flip(-1),
    "vflip": lambda x: x.flip(-2),
    "rotate": lambda x: torch.rot90(x, -1, (-2, -1)),
    "dark": lambda x: x * 0.45,
    "bright": lambda x: 1 - (1 - x) * 0.5,
    "warm": lambda x: gains(x, 1.15, 1.0, 0.7),
    "cool": lambda x: gains(x, 0.75, 0.98, 1.2),
    "blur": lambda x: gaussian(x, BLUR_SIGMA),
    "pixel": pixel,
    "poster": poster,
    "sketch": sketch,
    "cartoon": cartoon,
}
# What changes where things are: these need the whole picture, a crop will not do.
MOVES: Final = frozenset(["hflip", "vflip", "rotate"])
