"""Pictures with prompts, and edit triples, composed in batches on the training device.

Bank rows + colours + photographs -> prompts, source, target. Text-to-image has no source.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as nn
from torch import Tensor

from training import words
from training.data import PHOTO_SIZE, Bank, Thing
from training.effects import EFFECTS
from training.styles import tint

Size = tuple[int, int]
PHOTO_LEVELS: Final = 3
CORE_SPAN: Final = 186
PIXEL: Final = "pixel"


@dataclass(frozen=True)
class Example:
    """What one sample shows: enough to check a model's answer."""

    kind: str
    thing: int | None = None
    style: str = "noto"
    color: str | None = None
    background: str | None = None
    other: int | None = None


@dataclass(frozen=True)
class Batch:
    """Pictures are (B, 3, H, W) in 0 to 1; mask is the object's alpha, (B, 1, H, W)."""

    prompts: list[str]
    examples: list[Example]
    target: Tensor
    source: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Mix:
    """How often what is drawn; weights need not add up to one.

    Of the text pictures, `text_extra` show any object seen, named by Unicode; of the rest,
    `text_core` show the core, every third of the first known objects, so that a short run draws
    some things well; of the rest, `text_weak` show known objects outside the core.
    """

    kinds: Mapping[str, float]
    text_styles: Mapping[str, float] = field(default_factory=lambda: {"noto": 1.0})
    text_extra: float = 0.0
    text_core: float = 0.0
    text_weak: float = 0.0
    photo_share: float = 0.4


class Scenes:
    """A stream of samples; the same seed gives the same stream on the same device type."""

    def __init__(
        self, bank: Bank, mix: Mix, seed: int, device: str = "cpu", held_out: bool = False
    ) -> None:
        """held_out: show only objects and photographs that training never shows."""
        self.mix = mix
        self.device = device
        self.random = random.Random(seed)
        self.noise = torch.Generator(device).manual_seed(seed)
        self.things: Sequence[Thing] = bank.things
        self.pictures = bank.pictures.to(device)
        self.half = nn.avg_pool2d(bank.pictures.float(), 2).round().byte().to(device)
        self.known, self.seen = bank.known(), bank.seen()
        self.core = self.known[:CORE_SPAN:3]
        self.weak = sorted(set(self.known) - set(self.core))
        self.sources = bank.held_out() if held_out else []
        rows = bank.photo_rows(held_out)
        levels = [bank.photos[rows].float() / 255]
        for _ in range(PHOTO_LEVELS - 1):
            levels.append(nn.avg_pool2d(levels[-1], 2))
        self.photos = [level.to(device) for level in levels]
        self.colors = torch.tensor(list(words.COLORS.values()), device=device) / 255

    # --- pieces -----------------------------------------------------------------------------

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.noise, device=self.device)

    def flat(self, names: Sequence[str]) -> Tensor:
        """(B, 3, 1, 1) of named colours."""
        index = [words.COLOR_NAMES.index(name) for name in names]
        return self.colors[index][:, :, None, None]

    def gradients(self, count: int, size: Size) -> Tensor:
        corners = self.uniform(count, 3, 3, 3)
        return nn.interpolate(corners, size, mode="bicubic", align_corners=True).clamp(0, 1)

    def photo_crops(self, count: int, size: Size) -> Tensor:
        """Random crops, mirrored and colour-shifted, of the training photographs."""
        level = self.random.randrange(PHOTO_LEVELS)
        stack = self.photos[level]
        extent = torch.tensor(size, device=self.device) / (PHOTO_SIZE >> level)
        zoom = (1 + self.uniform(count, 1)) * extent.max().clamp(max=0.5) / extent.max()
        span = (extent * zoom).clamp(max=1.0)
        centre = (self.uniform(count, 2) * 2 - 1) * (1 - span)
        theta = torch.zeros(count, 2, 3, device=self.device)
        side = torch.where(self.uniform(count) < 0.5, -1.0, 1.0)
        theta[:, 0, 0], theta[:, 1, 1] = span[:, 1] * side, span[:, 0]
        theta[:, 0, 2], theta[:, 1, 2] = centre[:, 1], centre[:, 0]
        rows = [self.random.randrange(len(stack)) for _ in range(count)]
        grid = nn.affine_grid(theta, [count, 3, *size], align_corners=False)
        crop = nn.grid_sample(stack[rows], grid, padding_mode="reflection", align_corners=False)
        gain = 0.8 + 0.4 * self.uniform(count, 3, 1, 1)
        return (crop * torch.where(self.uniform(count, 1, 1, 1) < 0.5, gain, 1.0)).clamp(0, 1)

    def backgrounds(self, names: Sequence[str | None], size: Size) -> Tensor:
        """(B, 3, H, W): the named colour, or for None a gradient or a photograph."""
        count = len(names)
        result = self.flat([name or "white" for name in names]).expand(-1, -1, *size).clone()
        free = [i for i, name in enumerate(names) if name is None]
        if free:
            both = (self.gradients(len(free), size), self.photo_crops(len(free), size))
            pick = (self.uniform(len(free), 1, 1, 1) < 0.5).float()
            result[free] = both[0] * pick + both[1] * (1 - pick)
        assert result.shape == (count, 3, *size)
        return result

    def tinted(self, layers: Tensor, tints: Sequence[str | None]) -> Tensor:
        """(B, 5, H, W) layers in their named colours or as drawn: premultiplied (B, 3, H, W)."""
        colors = self.flat([name or "white" for name in tints])
        keep = torch.tensor([name is None for name in tints], device=self.device)
        drawn = tint(layers[:, 4:5], layers[:, 3:4], colors)
        return torch.where(keep[:, None, None, None], layers[:, :3], drawn)

    def layers(self, rows: Sequence[int], place: Tensor, size: Size) -> Tensor:
        """Object pictures on a canvas, (B, 5, H, W).

        place: (B, 4) of centre x, centre y (fractions of the canvas), extent (fraction of its
        shorter side) and +1 or -1 for as drawn or mirrored.
        """
        height, width = size
        short = min(size)
        pixels = place[:, 2] * short
        stack = self.half if float(pixels.max()) < 72 else self.pictures
        theta = torch.zeros(len(rows), 2, 3, device=self.device)
        across, down = width / pixels, height / pixels
        theta[:, 0, 0], theta[:, 0, 2] = across * place[:, 3], across * (1 - 2 * place[:, 0])
        theta[:, 0, 2] *= place[:, 3]
        theta[:, 1, 1], theta[:, 1, 2] = down, down * (1 - 2 * place[:, 1])
        grid = nn.affine_grid(theta, [len(rows), 5, height, width], align_corners=False)
        picked = stack[list(rows)].float() / 255
        return nn.grid_sample(picked, grid, align_corners=False)

    def centred(self, count: int, vary: bool) -> Tensor:
        """(B, 4) places: mostly 7/8 of the canvas and in its middle, as the text pictures are."""
        place = torch.tensor([0.5, 0.5, 0.875, 1.0], device=self.device).repeat(count, 1)
        if vary:
            small = self.uniform(count) < 0.35
            place[:, 2] = torch.where(small, 0.5 + 0.375 * self.uniform(count), place[:, 2])
            slack = (1 - place[:, 2:3]) / 2
            shift = (self.uniform(count, 2) * 2 - 1) * slack
            place[:, :2] += torch.where(small[:, None], shift, torch.zeros_like(shift))
            place[:, 3] = torch.where(self.uniform(count) < 0.25, -1.0, 1.0)
        return place

    def collages(self, count: int, size: Size) -> Tensor:
        image = self.backgrounds([None] * count, size)
        for _ in range(3):
            rows = [self.any_row() for _ in range(count)]
            place = torch.stack(
                [
                    self.uniform(count),
                    self.uniform(count),
                    0.4 + 0.7 * self.uniform(count),
                    torch.ones(count, device=self.device),
                ],
                1,
            )
            layer = self.layers(rows, place, size)
            tints = [self.color() if self.random.random() < 0.3 else None for _ in range(count)]
            layer = torch.cat([self.tinted(layer, tints), layer[:, 3:4]], 1)
            layer = layer * (self.uniform(count, 1, 1, 1) < 0.6)
            image = layer[:, :3] + (1 - layer[:, 3:4]) * image
        return image

    def color(self, *but: str | None) -> str:
        return self.random.choice([c for c in words.COLOR_NAMES if c not in but])

    def any_row(self) -> int:
        rows = self.things[self.random.choice(self.seen)].rows
        return rows[self.random.choice(list(rows))]

    def images(self, count: int, size: Size) -> Tensor:
        """Unlabelled pictures for the autoencoder: photographs, collages and plain objects."""
        kinds = [self.random.random() for _ in range(count)]
        photos = sum(k < 0.5 for k in kinds)
        collages = sum(0.5 <= k < 0.7 for k in kinds)
        plain = count - photos - collages
        parts = [self.photo_crops(photos, size)] if photos else []
        parts += [self.collages(collages, size)] if collages else []
        parts += [self.text(plain, size).target] if plain else []
        return torch.cat(parts)

    # --- samples ----------------------------------------------------------------------------

    def text(self, count: int, size: Size, named: Sequence[int] | None = None) -> Batch:
        """Text-to-image: an object by name, perhaps in a colour, perhaps on a background."""
        examples, prompts, tints, backs = [], [], [], []
        for number in range(count):
            roll = self.random.random()
            color = self.color() if 0.3 <= roll < 0.5 or roll >= 0.7 else None
            said = self.color(color) if roll >= 0.5 else None
            shown = said or ("white" if self.random.random() < 0.5 else self.color(color))
            if shown == color:
                shown = "blue"
            thing = named[number] if named else self.text_thing()
            style = self.random.choices(
                list(self.mix.text_styles), list(self.mix.text_styles.values())
            )[0]
            style = style if style in {PIXEL, *self.things[thing].rows} else "noto"
            prompts.append(self.caption(thing, style, color, said))
            examples.append(Example("text", thing, style, color, shown if said else None))
            tints.append(color)
            backs.append(shown)
        drawn = ["noto" if e.style == PIXEL else e.style for e in examples]
        rows = [self.things[e.thing or 0].rows[s] for e, s in zip(examples, drawn, strict=True)]
        layer = self.layers(rows, self.centred(count, vary=False), size)
        target = self.tinted(layer, tints) + (1 - layer[:, 3:4]) * self.flat(backs)
        blocky = [i for i, example in enumerate(examples) if example.style == PIXEL]
        if blocky:
            target[blocky] = EFFECTS["pixel"](target[blocky])
        return Batch(prompts, examples, target, None, layer[:, 3:4])

    def text_thing(self) -> int:
        if self.random.random() < self.mix.text_extra:
            return self.random.choice(self.seen)
        if self.random.random() < self.mix.text_core:
            return self.random.choice(self.core)
        weak = self.random.random() < self.mix.text_weak
        return self.random.choice(self.weak if weak else self.known)

    def caption(self, thing: int, style: str, color: str | None, background: str | None) -> str:
        name = self.random.choice(self.things[thing].names)
        match style:
            case "noto":
                prompt = self.random.choice(words.PREFIXES) + words.phrase(name, color)
            case "line":
                prompt = "a line icon of " + words.phrase(name, color)
            case "pixel":
                prompt = "pixel art of " + words.phrase(name, color)
            case _:
                prompt = f"a {style} picture of " + words.phrase(name, color)
        if background:
            prompt += self.random.choice(words.BACKGROUND_SUFFIXES).format(background)
        return prompt

    def edits(self, kinds: Sequence[str], size: Size, photos: bool | None = None) -> Batch:
        """One edit triple per kind named. photos: True or False forces or forbids photo sources."""
        from training.edits import compose

        effects = [i for i, kind in enumerate(kinds) if kind in EFFECTS]
        scenes = [i for i, kind in enumerate(kinds) if kind not in EFFECTS]
        parts: list[tuple[list[int], Batch]] = []
        if effects:
            parts.append((effects, self.effects([kinds[i] for i in effects], size, photos)))
        if scenes:
            parts.append((scenes, compose(self, [kinds[i] for i in scenes], size)))
        order = [i for indices, _ in parts for i in indices]
        place = {index: position for position, index in enumerate(order)}
        back = [place[i] for i in range(len(kinds))]
        prompts = [p for _, part in parts for p in part.prompts]
        examples = [e for _, part in parts for e in part.examples]
        source = torch.cat([part.source for _, part in parts if part.source is not None])[back]
        target = torch.cat([part.target for _, part in parts])[back]
        masks = torch.cat([part.mask for _, part in parts if part.mask is not None])[back]
        return Batch([prompts[i] for i in back], [examples[i] for i in back], target, source, masks)

    def effects(self, kinds: Sequence[str], size: Size, photos: bool | None) -> Batch:
        """Edits of the whole picture, on photographs, collages and plain scenes."""
        count = len(kinds)
        share = self.mix.photo_share if photos is None else float(photos)
        roll = [self.random.random() for _ in range(count)]
        source = torch.empty(count, 3, *size, device=self.device)
        groups = {
            "photo": [i for i, r in enumerate(roll) if r < share],
            "collage": [i for i, r in enumerate(roll) if share <= r < (1 + share) / 2],
            "scene": [i for i, r in enumerate(roll) if r >= (1 + share) / 2],
        }
        for name, rows in groups.items():
            if not rows:
                continue
            if name == "photo":
                source[rows] = self.photo_crops(len(rows), size)
            elif name == "collage":
                source[rows] = self.collages(len(rows), size)
            else:
                source[rows] = self.text(len(rows), size).target
        target = source.clone()
        for kind in sorted(set(kinds)):
            rows = [i for i, k in enumerate(kinds) if k == kind]
            target[rows] = EFFECTS[kind](source[rows])
        prompts = [self.random.choice(words.EFFECT_PHRASES[kind]) for kind in kinds]
        mask = torch.ones(count, 1, *size, device=self.device)
        return Batch(prompts, [Example(kind) for kind in kinds], target, source, mask)

    def kinds(self, count: int, only: Sequence[str] | None = None) -> list[str]:
        pool = {k: w for k, w in self.mix.kinds.items() if only is None or k in only}
        return self.random.choices(list(pool), list(pool.values()), k=count)
