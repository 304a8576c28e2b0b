"""Edits of one thing in the picture: recolour, background, cut out, replace, add, restyle."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training import words
from training.scenes import Batch, Example, Scenes, Size
from training.styles import DRAWN_FROM, STYLES

SCENE_KINDS = ("recolor", "background", "cutout", "replace", "add", "style")


def compose(scenes: Scenes, kinds: Sequence[str], size: Size) -> Batch:
    """Edit triples of the kinds named, one object on a background each."""
    plans = [plan(scenes, kind) for kind in kinds]
    examples = [example for example, *_ in plans]
    prompts = [prompt for _, prompt, *_ in plans]
    place = scenes.centred(len(kinds), vary=True)
    mirror = torch.tensor([k not in ("replace", "add") for k in kinds], device=place.device)
    place[:, 3] = torch.where(mirror, place[:, 3], torch.ones_like(place[:, 3]))
    things = scenes.things
    rows = [things[e.thing or 0].rows[e.style] for e in examples]
    layer = scenes.layers(rows, place, size)
    tints = [tint for _, _, tint, _ in plans]
    behind = scenes.backgrounds([back for *_, back in plans], size)
    source = scenes.tinted(layer, tints) + (1 - layer[:, 3:4]) * behind
    after_layer, after_tints = layer.clone(), list(tints)
    for i, example in enumerate(examples):
        if example.kind == "recolor":
            after_tints[i] = example.color
    swap = [i for i, e in enumerate(examples) if e.kind == "replace"]
    if swap:
        new = [things[examples[i].other or 0].rows["noto"] for i in swap]
        after_layer[swap] = scenes.layers(new, place[swap], size)
        for i in swap:
            after_tints[i] = None
    after_back = behind.clone()
    for i, example in enumerate(examples):
        if example.kind in ("background", "cutout"):
            after_back[i] = scenes.flat([example.background or "white"])[0]
    drawn, alpha = scenes.tinted(after_layer, after_tints), after_layer[:, 3:4].clone()
    for style, restyle in STYLES.items():
        rows = [i for i, e in enumerate(examples) if e.kind == "style" and e.color == style]
        if rows:
            drawn[rows], alpha[rows] = restyle(drawn[rows], alpha[rows])
    target = drawn + (1 - alpha) * after_back
    added = [i for i, e in enumerate(examples) if e.kind == "add"]
    if added:
        target[added] = with_additions(scenes, target[added], [prompts[i] for i in added], size)
    return Batch(prompts, examples, target.clamp(0, 1), source.clamp(0, 1), layer[:, 3:4])


def with_additions(scenes: Scenes, image: Tensor, prompts: Sequence[str], size: Size) -> Tensor:
    rows, places = [], []
    for prompt in prompts:
        name = next(n for n in words.ADDITIONS if n in prompt)
        emoji, x, y, extent = words.ADDITIONS[name]
        thing = next(t for t in scenes.things if t.emoji[0] == emoji[0])
        rows.append(thing.rows["noto"])
        places.append([x, y, extent, 1.0])
    layer = scenes.layers(rows, torch.tensor(places, device=scenes.device), size)
    return layer[:, :3] + (1 - layer[:, 3:4]) * image


def plan(scenes: Scenes, kind: str) -> tuple[Example, str, str | None, str | None]:
    """(what happens, prompt, the source object's tint, the source background or None)."""
    choose = scenes.random
    named = kind in ("replace", "add") or (kind != "style" and choose.random() < 0.5)
    pool = scenes.sources or (scenes.known if named else scenes.seen)
    index = choose.choice(pool)
    thing = scenes.things[index]
    name = choose.choice(thing.names)
    style = "noto" if choose.random() < 0.6 else choose.choice(list(thing.rows))
    tint = scenes.color() if choose.random() < 0.4 else None
    back = scenes.color(tint) if choose.random() < 0.75 else None
    if style == "line" and tint is None and back == "black":
        back = "yellow"
    match kind:
        case "recolor":
            color = scenes.color(tint, back)
            template = choose.choice(words.RECOLOR_PHRASES)
            prompt = template.format(name=name if thing.is_known else "object", color=color)
            return Example(kind, index, style, color, back), prompt, tint, back
        case "background":
            color = scenes.color(tint, back)
            prompt = choose.choice(words.BACKGROUND_PHRASES).format(color)
            return Example(kind, index, style, tint, color), prompt, tint, back
        case "cutout":
            back = back if back != "white" else "green"
            prompt = choose.choice(words.CUTOUT_PHRASES)
            return Example(kind, index, style, tint, "white"), prompt, tint, back
        case "replace":
            other = choose.choice([i for i in scenes.known if i != index])
            new = words.phrase(choose.choice(scenes.things[other].names))
            prompt = choose.choice(words.REPLACE_PHRASES).format(old=name, new=new)
            return Example(kind, index, "noto", tint, back, other), prompt, tint, back
        case "add":
            addition = choose.choice(list(words.ADDITIONS))
            prompt = choose.choice(words.ADD_PHRASES).format(addition)
            return Example(kind, index, style, tint, back), prompt, tint, back
        case "style":
            wanted = choose.choice(sorted(STYLES))
            style = choose.choice([s for s in DRAWN_FROM[wanted] if s in thing.rows])
            example = Example(kind, index, style, wanted, back)
            return example, choose.choice(words.STYLE_PHRASES[wanted]), tint, back
    raise ValueError(f"kinds: one of {', '.join(SCENE_KINDS)} or an effect, not {kind}")
