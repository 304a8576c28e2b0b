"""When an edit counts as right: one measure per kind, each on pictures (3, H, W) in 0 to 1."""

from typing import Final

import torch
import torch.nn.functional as nn
from torch import Tensor

from training import words
from training.effects import luminance

# A picture counts as grey when its channels lie, on average, at most this far apart.
SPREAD_MAX: Final = 0.04
# An exact edit may fall this many dB short of what the autoencoder itself reaches ...
BELOW_CEILING_DB: Final = 6.0
# ... or, where the limit is very high (a blurred picture), reach what counts as good there ...
GOOD_DB: Final = 28.0
# ... and must be this much nearer to the target than the unedited picture is.
BETTER_THAN_SOURCE_DB: Final = 1.0
KEPT_DB: Final = 16.0
# What was added must bring its region this much nearer to the target than it was.
ADDED_DB: Final = 3.0


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """In dB; with a mask (1, H, W) of 0 and 1 only where it is 1."""
    error = (a.clamp(0, 1) - b.clamp(0, 1)).pow(2)
    if mask is not None:
        error = error[mask.expand_as(error) > 0.5]
    return float(-10 * torch.log10(error.mean() + 1e-9))


def channel_spread(x: Tensor) -> float:
    return float((x.amax(0) - x.amin(0)).mean())


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of the two luminances."""
    first, second = (luminance(x[None]).flatten() for x in (a, b))
    pair = torch.stack([first, second])
    return float(torch.corrcoef(pair)[0, 1].nan_to_num(0.0))


def nearest_color(color: Tensor, references: Tensor) -> str:
    """The named colour whose reference, a row of (12, 3), is nearest."""
    return words.COLOR_NAMES[int((references - color).pow(2).sum(1).argmin())]


def region_color(x: Tensor, mask: Tensor) -> Tensor:
    """Mean colour (3,) where the mask (1, H, W) is over one half."""
    return x[:, mask[0] > 0.5].mean(1)


def thumbnail(x: Tensor) -> Tensor:
    """The feature space of the nearest-neighbour tests: 16 x 16 pixels, flattened."""
    return nn.adaptive_avg_pool2d(x, 16).flatten(-3)


def agrees(result: Tensor, target: Tensor, source: Tensor, ceiling: float) -> bool:
    """Near the exact target, and clearly nearer than the picture it started from."""
    got = psnr(result, target)
    near = got >= min(ceiling - BELOW_CEILING_DB, GOOD_DB)
    return near and got >= psnr(source, target) + BETTER_THAN_SOURCE_DB


def effect_is_right(
    kind: str, result: Tensor, target: Tensor, source: Tensor, ceiling: float
) -> bool:
    """Grayscale by channel spread, sketch by spread and outline, the rest by agreement."""
    match kind:
        case "gray":
            return channel_spread(result) <= SPREAD_MAX and correlation(result, target) >= 0.9
        case "sketch":
            return channel_spread(result) <= SPREAD_MAX and correlation(result, target) >= 0.6
        case _:
            return agrees(result, target, source, ceiling)
