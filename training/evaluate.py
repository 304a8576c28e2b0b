"""Measure a checkpoint through the real pipelines, on prompts, objects and photos it never saw.

    python -m training.evaluate --model FOLDER --target docs/models

FOLDER holds checkpoint/ and defaults.json. Writes embedded.json, contact sheets, and the table in
embedded.md between its two marks.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training import words
from training.data import WORK, Bank, load
from training.effects import EFFECTS
from training.measures import (
    ADDED_DB,
    KEPT_DB,
    effect_is_right,
    nearest_color,
    psnr,
    region_color,
    thumbnail,
)
from training.painter import Painter
from training.scenes import Batch, Mix, Scenes, Size
from training.sheet import grid
from training.styles import STYLES

log = logging.getLogger(__name__)

SCENE_EDITS: Final = ("recolor", "background", "cutout", "replace", "add", "style")
DRAWN: Final = ("3d", "flat", "line", "pixel")


@dataclass(frozen=True)
class Mark:
    """One row of the table. right: share of samples that pass; decibels are means."""

    kind: str
    count: int
    right: float
    result_db: float | None = None
    ceiling_db: float | None = None
    source_db: float | None = None


@dataclass
class Report:
    marks: list[Mark] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    def add(self, mark: Mark) -> None:
        log.info("%s", mark)
        self.marks.append(mark)


# --- text to image --------------------------------------------------------------------------


def gallery(
    scenes: Scenes, things: Sequence[int], size: Size, color: str | None, style: str = "noto"
) -> Tensor:
    """Each thing as training draws it, untinted or in one colour: (N, 5, H, W) layers."""
    rows = [scenes.things[i].rows[style] for i in things]
    layers = scenes.layers(rows, scenes.centred(len(rows), vary=False), size)
    return torch.cat([scenes.tinted(layers, [color] * len(rows)), layers[:, 3:4]], 1)


def text_nearest(painter: Painter, scenes: Scenes, report: Report, count: int) -> Tensor:
    """'a NAME' for each thing: is the nearest picture, on any background, the thing itself?"""
    things = scenes.random.sample(scenes.known, count)
    images = painter.text([words.phrase(scenes.things[i].names[-1]) for i in things])
    right = nearest(painter, scenes, images, things, scenes.known)
    kind = "text: nearest neighbour is the thing asked for"
    report.add(Mark(kind, len(right), sum(right) / len(right)))
    return images


def nearest(
    painter: Painter,
    scenes: Scenes,
    images: Tensor,
    things: Sequence[int],
    among: Sequence[int],
    style: str = "noto",
) -> list[bool]:
    """Whether each image is nearest to its thing, of all those `among`, on any background."""
    layers = gallery(scenes, among, painter.size, None, style)
    references = torch.stack(
        [
            thumbnail(layers[:, :3] + (1 - layers[:, 3:4]) * back)
            for back in scenes.flat(words.COLOR_NAMES)
        ]
    )
    return [
        among[int((references - thumbnail(image)).pow(2).mean(-1).amin(0).argmin())] == thing
        for image, thing in zip(images, things, strict=True)
    ]


def text_styles(painter: Painter, scenes: Scenes, report: Report, count: int) -> Tensor:
    """'a line icon of a NAME' and the like; nearest among all that the style has, as above."""
    shown = []
    for style in DRAWN:
        row = "noto" if style == "pixel" else style
        among = [i for i in scenes.known if row in scenes.things[i].rows]
        things = scenes.random.sample(among, count)
        images = painter.text([scenes.caption(i, style, None, None) for i in things], seed=900)
        right = nearest(painter, scenes, images, things, among, row)
        report.add(Mark(f"text: the thing, in style {style}", count, sum(right) / count))
        shown.append(images[:12])
    return torch.cat(shown)


def text_colors(painter: Painter, scenes: Scenes, report: Report, count: int) -> Tensor:
    """'a COLOUR NAME on a COLOUR background': is each colour where it was asked for?"""
    choose = scenes.random
    asked: list[tuple[int, str, str]] = []
    for _ in range(count):
        color, back = choose.sample(words.COLOR_NAMES, 2)
        asked.append((choose.choice(scenes.known), color, back))
    names = [scenes.things[i].names[-1] for i, _, _ in asked]
    prompts = [
        f"{words.phrase(name, color)} on a {back} background"
        for name, (_, color, back) in zip(names, asked, strict=True)
    ]
    images = painter.text(prompts, seed=500)
    flat = scenes.colors.cpu()
    object_right = back_right = 0
    for image, (thing, color, back) in zip(images, asked, strict=True):
        tints = torch.cat([gallery(scenes, [thing], painter.size, c) for c in words.COLOR_NAMES])
        inside, outside = (tints[0, 3:4] > 0.9).float(), (tints[0, 3:4] < 0.05).float()
        references = torch.stack([region_color(t[:3], inside) for t in tints])
        object_right += nearest_color(region_color(image, inside), references) == color
        back_right += nearest_color(region_color(image, outside), flat) == back
    report.add(Mark("text: colour of the object", count, object_right / count))
    report.add(Mark("text: colour of the background", count, back_right / count))
    return images


# --- edits ----------------------------------------------------------------------------------


def scene_is_right(scenes: Scenes, batch: Batch, at: int, result: Tensor) -> bool:
    """Recolour and background: the right colour in the right region, the rest kept."""
    example = batch.examples[at]
    assert batch.mask is not None
    target, alpha = batch.target[at], batch.mask[at]
    inside, outside = (alpha > 0.9).float(), (alpha < 0.05).float()
    match example.kind:
        case "recolor":
            got = nearest_color(region_color(result, inside), scenes.colors.cpu())
            return got == example.color and psnr(result, target, outside) >= KEPT_DB
        case "background" | "cutout":
            got = nearest_color(region_color(result, outside), scenes.colors.cpu())
            return got == example.background and psnr(result, target, inside) >= KEPT_DB
        case "add":
            return added(batch, at, result)
        case _:
            return replaced(scenes, batch, at, result)


def replaced(scenes: Scenes, batch: Batch, at: int, result: Tensor) -> bool:
    """Is the target nearer to the result than the source, and than 20 other things in its place?

    The same question for a thing replaced and for one redrawn in another style.
    """
    assert batch.source is not None
    size = (result.shape[1], result.shape[2])
    example = batch.examples[at]
    layers = gallery(scenes, scenes.random.sample(scenes.known, 20), size, None)
    drawn, alpha = layers[:, :3], layers[:, 3:4]
    if example.kind == "style" and example.color:
        drawn, alpha = STYLES[example.color](drawn, alpha)
    others = drawn + (1 - alpha) * scenes.flat([example.background or "white"])
    rivals = torch.cat([others, batch.source[at : at + 1]])
    mark = (thumbnail(batch.target[at]) - thumbnail(result)).pow(2).mean()
    return bool((thumbnail(rivals) - thumbnail(result)).pow(2).mean(-1).min() > mark)


def added(batch: Batch, at: int, result: Tensor) -> bool:
    """Where something was to appear, clearly nearer to the target than before; the rest kept."""
    assert batch.source is not None
    target, source = batch.target[at], batch.source[at]
    changed = ((target - source).abs().amax(0, keepdim=True) > 0.1).float()
    nearer = psnr(result, target, changed) - psnr(source, target, changed)
    return nearer >= ADDED_DB and psnr(result, target, 1 - changed) >= KEPT_DB


def mean_psnr(a: Tensor, b: Tensor) -> float:
    return sum(psnr(x, y) for x, y in zip(a, b, strict=True)) / len(a)


def edits(
    painter: Painter, scenes: Scenes, report: Report, kind: str, count: int, photos: bool
) -> list[Tensor]:
    """Measure one kind of edit; the first rows (source, result, target) for a sheet."""
    batch = scenes.edits([kind] * count, painter.size, photos=photos)
    assert batch.source is not None
    results = painter.edit(batch.source, batch.prompts)
    best = painter.through_vae(batch.target)
    right = 0
    for i in range(count):
        ceiling = psnr(best[i], batch.target[i])
        right += (
            effect_is_right(kind, results[i], batch.target[i], batch.source[i], ceiling)
            if kind in EFFECTS
            else scene_is_right(scenes, batch, i, results[i])
        )
    where = "photo" if photos else "object" if kind in SCENE_EDITS else "scene"
    report.add(
        Mark(
            f"edit, {where}: {kind}",
            count,
            right / count,
            mean_psnr(results, batch.target),
            mean_psnr(best, batch.target),
            mean_psnr(batch.source, batch.target),
        )
    )
    return [batch.source[:4], results[:4], batch.target[:4]]


# --- the whole ------------------------------------------------------------------------------


def determinism(painter: Painter, report: Report) -> None:
    prompt = ["a red apple"]
    first, again, other = (painter.text(prompt, seed) for seed in (7, 7, 8))
    same = float(torch.equal(first, again) and not torch.equal(first, other))
    report.add(Mark("the same seed gives the same picture, another another", 1, same))


def timing(painter: Painter, bank: Bank, report: Report) -> None:
    photo = bank.photos[:1].float() / 255
    photo = torch.nn.functional.interpolate(photo, painter.size, mode="area")
    for name in ("text", "edit"):
        begin = time.monotonic()
        if name == "text":
            painter.text(["a taxi"])
        else:
            painter.edit(photo, ["make it sepia"])
        report.facts[f"{name}_s"] = round(time.monotonic() - begin, 2)


def sheet_of(parts: Sequence[Sequence[Tensor]], path: Path) -> None:
    """One line per kind: source, result and target, four times."""
    rows = [
        [picture for i in range(len(part[0])) for picture in (p[i] for p in part)] for part in parts
    ]
    grid(rows, path)


def evaluate(folder: Path, target: Path, bank: Bank, kinds: Sequence[str], count: int) -> Report:
    """Everything, written to `target`."""
    report = Report()
    painter = Painter(folder)
    mix = Mix(dict.fromkeys(kinds, 1.0))
    seen = Scenes(bank, mix, seed=31)
    unseen = Scenes(bank, mix, seed=32, held_out=True)
    photos = bank.photos[bank.photo_rows(held_out=True)].float() / 255
    photos = torch.nn.functional.interpolate(
        photos, painter.size, mode="bicubic", antialias=True
    ).clamp(0, 1)
    report.facts["vae_photo_db"] = round(mean_psnr(painter.through_vae(photos), photos), 2)
    named = text_nearest(painter, seen, report, min(len(seen.known), count * 8))
    colored = text_colors(painter, seen, report, count * 3)
    target.mkdir(parents=True, exist_ok=True)
    styled = text_styles(painter, seen, report, count)
    pictures = [*named[:48], *colored[:24], *styled]
    rows = [pictures[i : i + 12] for i in range(0, len(pictures), 12)]
    grid([row for row in rows if len(row) == 12], target / "embedded-text.jpg")
    scene_rows = [edits(painter, unseen, report, kind, count, photos=False) for kind in kinds]
    photo_rows = [
        edits(painter, unseen, report, kind, count, photos=True)
        for kind in kinds
        if kind in EFFECTS
    ]
    sheet_of(scene_rows, target / "embedded-edits.jpg")
    sheet_of(photo_rows, target / "embedded-photos.jpg")
    determinism(painter, report)
    timing(painter, bank, report)
    edit_marks = [m for m in report.marks if m.kind.startswith("edit")]
    report.facts["edits_right"] = round(sum(m.right for m in edit_marks) / len(edit_marks), 3)
    report.facts["worst_edit"] = min(m.right for m in edit_marks)
    values = {"marks": [asdict(m) for m in report.marks], "facts": report.facts}
    (target / "embedded.json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    insert(target / "embedded.md", table(report))
    return report


def insert(page: Path, lines: str) -> None:
    """Put the table between the page's two marks, or make a page of it alone."""
    begin, end = "<!-- marks: begin -->\n", "<!-- marks: end -->"
    text = page.read_text("utf-8") if page.exists() else begin + end + "\n"
    head, _, rest = text.partition(begin)
    page.write_text(head + begin + lines + end + rest.partition(end)[2], "utf-8")


def table(report: Report) -> str:
    """The marks as a Markdown table."""
    lines = [
        "| measure | n | right | result dB | VAE alone dB | unedited dB |",
        "|---|---|---|---|---|---|",
    ]
    for mark in report.marks:
        decibels = [mark.result_db, mark.ceiling_db, mark.source_db]
        told = " | ".join("" if value is None else f"{value:.1f}" for value in decibels)
        lines.append(f"| {mark.kind} | {mark.count} | {mark.right:.0%} | {told} |")
    lines += [f"| {name} | | {value} | | | |" for name, value in report.facts.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--model", type=Path, default=Path("src/fluxserve/flux/embedded"))
    parser.add_argument("--target", type=Path, default=WORK / "evaluation")
    parser.add_argument("--count", type=int, default=16, help="samples per kind of edit")
    parser.add_argument("--kinds", nargs="+", help="edit kinds; all the shipped model was taught")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    kinds = options.kinds or [*SCENE_EDITS, *EFFECTS]
    evaluate(options.model, options.target, load(options.work), kinds, options.count)


if __name__ == "__main__":
    main()
