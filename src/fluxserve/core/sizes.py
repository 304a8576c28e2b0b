"""Widths and heights: ratios as words, sizes of about one area, the nearest of a preferred list."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels across and down."""

    width: int
    height: int

    @property
    def ratio(self) -> float:
        return self.width / self.height

    @property
    def area(self) -> int:
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def both_ways(sizes: Sequence[tuple[int, int]]) -> tuple[Size, ...]:
    """Each size and its mirror, without doubles."""
    found = dict.fromkeys(Size(w, h) for a, b in sizes for w, h in ((a, b), (b, a)))
    return tuple(found)


# The sizes FLUX.1 Kontext was trained on, as its open implementation lists them.
KONTEXT_SIZES = both_ways(
    [
        (672, 1568),
        (688, 1504),
        (720, 1456),
        (752, 1392),
        (800, 1328),
        (832, 1248),
        (880, 1184),
        (944, 1104),
        (1024, 1024),
    ]
)


def parse_ratio(text: str) -> float | None:
    """ "16:9" -> 1.78; None when it is no ratio of two positive whole numbers."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*:\s*(\d{1,5})\s*", text)
    if not match:
        return None
    across, down = int(match[1]), int(match[2])
    return across / down if across and down else None


def parse_size(text: str) -> Size | None:
    """ "1024x768", "1024*768", any case and spaces -> Size; None when it is neither.

    Any number of pixels is read, none included: the limits of the model judge it.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX*\u00d7]\s*(\d{1,9})\s*", text)
    return Size(int(match[1]), int(match[2])) if match else None


def nearest(ratio: float, sizes: Sequence[Size]) -> Size:
    """The size whose ratio is nearest to `ratio`, on a logarithmic scale."""
    return min(sizes, key=lambda size: abs(math.log(size.ratio / ratio)))


def of_area(ratio: float, area: int, multiple: int) -> Size:
    """A size of about `area` pixels with about this ratio, sides multiples of `multiple`."""
    width = math.sqrt(area * ratio)
    return Size(round_to(width, multiple), round_to(width / ratio, multiple))


def round_to(length: float, multiple: int) -> int:
    """The nearest multiple, at least one of it."""
    return max(multiple, round(length / multiple) * multiple)
