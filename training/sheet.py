"""Contact sheets: what the model draws and edits, to look at."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data import Bank
from training.model import Model, pack, unpack
from training.scenes import Mix, Scenes, Size
from training.vae import encode, held_out_photos

CANVAS: Final[Size] = (128, 128)
PROMPTS: Final = (
    "a red apple", "a taxi", "a cat", "a rocket", "a pizza", "a penguin", "a guitar", "a house",
    "a sunflower", "a blue car", "a green dog on a yellow background", "a red star on blue",
)  # fmt: skip
KINDS: Final = (
    "recolor", "background", "cutout", "replace", "recolor", "hflip", "vflip", "invert",
    "cartoon", "background", "sketch", "replace",
)  # fmt: skip
PHOTO_EDITS: Final = (
    "make it grayscale", "make it sepia", "make it warmer", "turn it into a sketch",
    "make this a cartoon", "posterize it", "blur it", "flip it", "make it pixel art",
    "invert the colors", "make it darker", "flip it vertically",
)  # fmt: skip


def grid(rows: list[list[Tensor]], path: Path) -> None:
    """Write rows of (3, H, W) pictures in 0 to 1 as one PNG."""
    lines = [torch.cat(row, 2) for row in rows]
    whole = torch.cat(lines, 1).clamp(0, 1).permute(1, 2, 0)
    Image.fromarray((whole.numpy() * 255).round().astype(np.uint8)).save(path, quality=90)


@torch.no_grad()
def draw(model: Model, bank: Bank, vae: Any, matrix: Tensor, path: Path) -> None:
    """Text pictures, scene edits (source, result, target) and edits of held-out photographs."""
    device = next(model.parameters()).device

    def tokens(pictures: Tensor) -> Tensor:
        return pack(encode(pictures, matrix)).to(device)

    def show(packed: Tensor) -> list[Tensor]:
        return list(vae.decode(unpack(packed.cpu(), CANVAS)).sample / 2 + 0.5)

    scenes = Scenes(bank, Mix(dict.fromkeys(KINDS, 1.0)), seed=5151)
    edits = scenes.edits(KINDS, CANVAS)
    assert edits.source is not None
    photos = held_out_photos(bank, CANVAS[0])
    photos = photos[[i % len(photos) for i in range(len(PHOTO_EDITS))]]
    source = tokens(edits.source * 2 - 1)
    rows = [
        show(model.sample(PROMPTS, CANVAS, guidance=2.0)),
        list(edits.source),
        show(model.sample(edits.prompts, CANVAS, source, guidance=1.5)),
        list(edits.target),
        list(photos / 2 + 0.5),
        show(model.sample(PHOTO_EDITS, CANVAS, tokens(photos), guidance=1.5)),
    ]
    grid(rows, path)
