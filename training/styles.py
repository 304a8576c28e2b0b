"""A drawn thing in another style or colour, as exact functions of how it is drawn now.

Every style takes and gives a layer: colours (B, 3, H, W), premultiplied by alpha (B, 1, H, W),
in 0 to 1. Lengths are in pixels of a 128 px picture.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as nn
from torch import Tensor

from training import words
from training.effects import differences, gaussian, luminance

# A tint: the colour at the thing's mean luminance, how far its shading turns that darker and
# towards white, and the same for black and white, which have no room on one side.
TINT_MEAN: Final = 0.96
TINT_SHADING: Final = 0.6
TINT_GLEAM: Final = 0.7
BLACK_BELOW, BLACK_MEAN, BLACK_SHADING = 0.2, 0.05, 0.25
WHITE_ABOVE, WHITE_MEAN, WHITE_SHADING = 0.9, 0.91, 0.3
RELIEF_SIGMA: Final = 4.0
RELIEF_GAIN: Final = 5.0
LIGHT_RANGE: Final = (-0.6, 0.5)  # how much darker and lighter a slope may turn a colour
GLEAM_FROM, GLEAM_MAX = 0.15, 0.6  # where on the slope white is mixed in, and how much at most
SHADOW: Final = 0.5
SHADOW_OFFSET: Final = 6
SHADOW_SIGMA: Final = 2.5
FLAT_COLORS: Final = 3
FLAT_VIVID: Final = 1.8
FLAT_GAMMA: Final = 0.7
FLAT_ROUNDS: Final = 8


def opaque(colors: Tensor, alpha: Tensor) -> Tensor:
    """Colours as they are where the thing is, not premultiplied."""
    return (colors / alpha.clamp_min(1e-3)).clamp(0, 1)


def grown(alpha: Tensor, pixels: int) -> Tensor:
    """Alpha with an edge so many pixels further out; negative: further in."""
    side = 2 * abs(pixels) + 1
    sign = 1 if pixels > 0 else -1
    return sign * nn.max_pool2d(sign * alpha, side, 1, abs(pixels))


def tint(shade: Tensor, alpha: Tensor, color: Tensor) -> Tensor:
    """A thing in one colour (B, 3, 1, 1), keeping its shading: premultiplied (B, 3, H, W).

    shade: (B, 1, H, W), its luminance times alpha. The mean of the result is about the colour,
    however light or dark the thing was drawn: "make it orange" gives no brown.
    """
    mean = shade.sum((2, 3), True) / alpha.sum((2, 3), True).clamp_min(1e-3)
    above = shade / alpha.clamp_min(1e-3) - mean
    tone = TINT_MEAN + TINT_SHADING * above
    drawn = color * tone.clamp(0, 1) + (1 - color) * TINT_GLEAM * (tone - 1).clamp_min(0)
    black = color + BLACK_MEAN + BLACK_SHADING * above
    white = WHITE_MEAN + WHITE_SHADING * above
    drawn = torch.where(color.amax(1, True) < BLACK_BELOW, black, drawn)
    drawn = torch.where(color.amin(1, True) > WHITE_ABOVE, white, drawn)
    return drawn.clamp(0, 1) * alpha


def line(colors: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Black outlines, outside and between its colours, white inside."""
    seen = gaussian(colors + (1 - alpha) * 0.5, 0.9)
    inner = (differences(seen).sum(1, keepdim=True) * 5 - 0.7).clamp(0, 1) * alpha
    whole = grown(alpha, 2)
    ink = torch.maximum(whole - grown(alpha, -1), inner).clamp(0, 1)
    black = torch.tensor(words.COLORS["black"], device=colors.device)[:, None, None] / 255
    return (1 - ink + black * ink) * whole, whole


def solid(colors: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded, lit from the upper left, with a gleam, and a shadow cast to the lower right.

    Light is the softened outline's slope.
    """
    height = gaussian(alpha, RELIEF_SIGMA)
    down = nn.pad(height[..., 2:, :] - height[..., :-2, :], (0, 0, 1, 1)) / 2
    right = nn.pad(height[..., 2:] - height[..., :-2], (1, 1, 0, 0)) / 2
    light = (down + right) * RELIEF_GAIN
    lit = opaque(colors, alpha) * (1 + light.clamp(*LIGHT_RANGE))
    gleam = (light - GLEAM_FROM).clamp(0, GLEAM_MAX)
    drawn = (lit + (1 - lit) * gleam).clamp(0, 1) * alpha
    across = nn.pad(alpha, (SHADOW_OFFSET, 0, SHADOW_OFFSET, 0))
    shadow = gaussian(across[..., : alpha.shape[-2], : alpha.shape[-1]], SHADOW_SIGMA)
    return drawn, alpha + (1 - alpha) * SHADOW * shadow


def flat(colors: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """No shading: three colours of its own, made lighter and more vivid.

    They are found by k-means from the thirds of its luminance.
    """
    seen = opaque(gaussian(colors, 0.8), gaussian(alpha, 0.8))
    result = torch.empty_like(seen)
    for i in range(len(seen)):
        pixels = seen[i].flatten(1).T
        inside = alpha[i].flatten() > 0.5
        if int(inside.sum()) < FLAT_COLORS:
            result[i] = seen[i]
            continue
        own = pixels[inside]
        order = luminance(own.T[None, :, None, :]).flatten().argsort()
        at = (torch.arange(FLAT_COLORS) + 0.5) / FLAT_COLORS * len(own)
        palette = own[order[at.long().to(order.device)]]
        for _ in range(FLAT_ROUNDS):
            nearest = torch.cdist(own, palette).argmin(1)
            share = nn.one_hot(nearest, FLAT_COLORS).to(own)
            count = share.sum(0)[:, None]
            palette = torch.where(count > 0, share.T @ own / count.clamp_min(1), palette)
        nearest = torch.cdist(pixels, palette).argmin(1)
        gray = luminance(palette.T[None, :, None, :])[0, 0].T
        vivid = (gray + (palette - gray) * FLAT_VIVID).clamp(0, 1) ** FLAT_GAMMA
        result[i] = vivid[nearest].T.view_as(result[i])
    return gaussian(result, 0.6).clamp(0, 1) * alpha, alpha


STYLES: Final[Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    "3d": solid,
    "flat": flat,
    "line": line,
}
# Whose drawings change by it: what is lit already gets no light, what is flat is not made so.
DRAWN_FROM: Final[Mapping[str, tuple[str, ...]]] = {
    "3d": ("noto", "flat"),
    "flat": ("noto", "3d"),
    "line": ("noto", "3d", "flat"),
}
