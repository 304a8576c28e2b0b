"""What the model can be asked for: objects by name, colours, and a phrase list for each edit."""

import json
from pathlib import Path
from typing import Final

RGB = tuple[int, int, int]

COLORS: Final[dict[str, RGB]] = {
    "red": (220, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 215, 40),
    "green": (45, 165, 60),
    "blue": (40, 95, 220),
    "purple": (130, 60, 190),
    "pink": (245, 130, 180),
    "brown": (120, 75, 45),
    "black": (25, 25, 28),
    "white": (248, 248, 248),
    "gray": (135, 135, 140),
    "cyan": (40, 195, 215),
}
COLOR_NAMES: Final = tuple(COLORS)

PLURALS: Final = frozenset(
    [
        *("grapes", "cherries", "fries", "french fries", "glasses", "jeans", "books", "scissors"),
        *("pancakes", "bacon", "popcorn", "sushi", "garlic", "broccoli", "socks", "shorts"),
        *("sunglasses", "headphones", "yarn"),
    ]
)

PREFIXES: Final = ("", "", "", "", "a picture of ", "an emoji of ", "draw ", "a drawing of ")
BACKGROUND_SUFFIXES: Final = (" on a {} background", " on {}", " with a {} background")

STYLES: Final = ("noto", "3d", "flat", "line")
STYLE_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "3d": ("make it 3d", "turn it into a 3d render"),
    "flat": ("make it flat", "redraw it in flat style"),
    "line": ("make it a line icon", "turn it into a black line icon"),
}

# One phrase list per edit of the whole picture. {} takes nothing here.
EFFECT_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "gray": (
        "make it grayscale",
        "make it black and white",
        "convert to grayscale",
        "turn it into a black and white image",
        "remove the color",
    ),
    "sepia": ("make it sepia", "add a sepia tone", "make it look like an old photo"),
    "invert": ("invert the colors", "make it a negative", "invert it"),
    "hflip": (
        "flip it",
        "flip it horizontally",
        "mirror it",
        "mirror the image",
        "flip the image",
    ),
    "vflip": ("flip it vertically", "turn it upside down", "flip the image upside down"),
    "rotate": ("rotate it", "rotate the image", "rotate it right"),
    "dark": ("make it darker", "darken the image", "make it night"),
    "bright": ("make it brighter", "brighten the image", "make it lighter"),
    "warm": ("make it warmer", "warm colors", "make the colors warmer"),
    "cool": ("make it cooler", "cool colors", "make the colors colder"),
    "blur": ("blur it", "blur the image", "make it blurry"),
    "pixel": ("pixelate it", "make it pixel art", "turn it into pixel art"),
    "poster": ("posterize it", "posterise it", "make it a poster"),
    "sketch": (
        "turn it into a sketch",
        "make this a pencil sketch",
        "make it a sketch",
        "draw it as a pencil sketch",
    ),
    "cartoon": ("make this a cartoon", "turn it into a cartoon", "make it a cartoon"),
}
EFFECTS: Final = tuple(EFFECT_PHRASES)

RECOLOR_PHRASES: Final = (
    "make the {name} {color}",
    "make the {name} {color}",
    "make it {color}",
    "change the color of the {name} to {color}",
    "paint the {name} {color}",
    "turn the {name} {color}",
)
BACKGROUND_PHRASES: Final = (
    "turn the background {}",
    "make the background {}",
    "change the background to {}",
    "put it on a {} background",
)
CUTOUT_PHRASES: Final = ("remove the background", "erase the background", "cut out the object")
REPLACE_PHRASES: Final = (
    "replace the {old} with {new}",
    "turn the {old} into {new}",
    "turn it into {new}",
    "change it to {new}",
)
# What may be put on top of another object: name in the prompt, emoji, centre (x, y) and size as
# fractions of the canvas.
ADDITIONS: Final[dict[str, tuple[str, float, float, float]]] = {
    "a hat": ("\U0001f3a9", 0.5, 0.17, 0.34),
    "a crown": ("\U0001f451", 0.5, 0.15, 0.32),
    "glasses": ("\U0001f453", 0.5, 0.42, 0.46),
    "a heart": ("\u2764", 0.78, 0.78, 0.36),
    "a star": ("\u2b50", 0.78, 0.24, 0.34),
}
ADD_PHRASES: Final = ("add {}", "put {} on it", "give it {}")


def objects() -> list[tuple[str, tuple[str, ...]]]:
    """(emoji, names) of each object, first name the fullest; the order is the bank's order."""
    table = json.loads(Path(__file__).with_name("objects.json").read_text("utf-8"))
    return [(emoji, tuple(names)) for emoji, names in table]


def more_objects() -> dict[str, tuple[str, ...]]:
    """Emoji -> names of objects known as well, which lie among the bank's extra ones."""
    table = json.loads(Path(__file__).with_name("more_objects.json").read_text("utf-8"))
    return {emoji: tuple(names) for emoji, names in table}


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def phrase(name: str, color: str | None = None) -> str:
    """The object as one says it: 'a red apple', 'an apple', 'grapes'."""
    words = f"{color} {name}" if color else name
    return words if name in PLURALS else with_article(words)
