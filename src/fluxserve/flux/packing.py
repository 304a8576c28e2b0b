"""Latents to tokens and back, and the place of every token.

A position is (picture, row, column): the picture being made is 0, references are 1, text is all
zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AXES = 3  # picture, row, column


def pack(latents: Tensor) -> Tensor:
    """(C, H, W) -> (H/2 * W/2, 4C): each 2 x 2 patch becomes a token. H and W are even."""
    channels, height, width = latents.shape
    patches = latents.reshape(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return patches.reshape(height // 2 * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(height * width, 4C) -> (C, 2 height, 2 width); height and width count tokens."""
    channels = tokens.shape[1] // 4
    patches = tokens.reshape(height, width, channels, 2, 2).permute(2, 0, 3, 1, 4)
    return patches.reshape(channels, 2 * height, 2 * width)


def text_positions(length: int) -> Tensor:
    """(length, 3), all zero: order is the text encoder's business."""
    return torch.zeros(length, AXES)


def grid_positions(
    height: int, width: int, *, picture: int = 0, top: int = 0, left: int = 0
) -> Tensor:
    """(height * width, 3) for a grid of tokens whose first one sits at (top, left)."""
    positions = torch.zeros(height, width, AXES)
    positions[..., 0] = picture
    positions[..., 1] += torch.arange(top, top + height)[:, None]
    positions[..., 2] += torch.arange(left, left + width)[None, :]
    return positions.reshape(height * width, AXES)


def reference_positions(sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Positions of reference pictures of (height, width) tokens, in order.

    All of them are picture 1. The first starts at the origin, as in training; each further one is
    put below or to the right of what is there, whichever leaves the whole closer to a square.
    """
    parts: list[Tensor] = []
    height = width = 0
    for rows, columns in sizes:
        below = rows + height <= columns + width
        top, left = (height, 0) if below else (0, width)
        parts.append(grid_positions(rows, columns, picture=1, top=top, left=left))
        height, width = max(height, top + rows), max(width, left + columns)
    return torch.cat(parts) if parts else torch.zeros(0, AXES)
