"""One id, in the alphabet of every dialect.

Inside the house an id is 32 lower-case hex digits; every dialect reads every form. New ids are
UUIDs of version 7 (RFC 9562): the time in milliseconds, then 74 random bits. So rows of one time
stand together in the database, and accepting one costs a third less than with wholly random ids.
"""

import os
import re
import time
from collections import deque
from functools import lru_cache

# Crockford's base 32 in lower case: no i, l, o, u. 26 characters hold 130 bits, two of them zero.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_AS_PYTHON = str.maketrans(ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)
_PAIRS_SHIFTS = range(120, -1, -10)

_HEX = re.compile(r"[0-9a-f]{32}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BASE32 = re.compile(rf"[0-7][{ALPHABET}]{{25}}")

RANDOM_BYTES = 10
DRAWN_AT_ONCE = 256  # ids; asking the system for each of them stops the event loop each time
_drawn: deque[bytes] = deque()  # taking one is atomic: ids are made in several threads
if hasattr(os, "register_at_fork"):  # a child must not draw what its parent will
    os.register_at_fork(after_in_child=_drawn.clear)


def new_id() -> str:
    try:
        drawn = _drawn.pop()
    except IndexError:
        drawn = _draw()
    random = int.from_bytes(drawn)
    version = 0x7000 | random >> 62 & 0xFFF
    variant = 0x8000_0000_0000_0000 | random & 0x3FFF_FFFF_FFFF_FFFF
    return f"{time.time_ns() // 1_000_000:012x}{version:04x}{variant:016x}"


def _draw() -> bytes:
    """Random bytes for one id, out of a fresh supply."""
    data = os.urandom(RANDOM_BYTES * DRAWN_AT_ONCE)
    parts = [data[at : at + RANDOM_BYTES] for at in range(0, len(data), RANDOM_BYTES)]
    first = parts.pop()
    _drawn.extend(parts)
    return first


def to_base32(id_: str) -> str:
    """26 characters of [0-9a-z], as Replicate shows ids."""
    number = int(id_, 16)
    return "".join([_PAIRS[number >> shift & 1023] for shift in _PAIRS_SHIFTS])


def to_uuid(id_: str) -> str:
    """8-4-4-4-12 hex digits, as BFL, OpenAI and fal show ids."""
    return f"{id_[:8]}-{id_[8:12]}-{id_[12:16]}-{id_[16:20]}-{id_[20:]}"


def parse_id(text: str) -> str | None:
    """The id behind any of its spellings, or None when it is none."""
    text = text.strip()
    return _parsed(text) if len(text) <= 36 else None


@lru_cache(maxsize=4096)  # clients poll the same few
def _parsed(text: str) -> str | None:
    text = text.lower()
    length = len(text)
    if length == 32:
        return text if _HEX.fullmatch(text) else None
    if length == 36:
        return text.replace("-", "") if _UUID.fullmatch(text) else None
    if length == 26 and _BASE32.fullmatch(text):
        return f"{int(text.translate(_AS_PYTHON), 32):032x}"
    return None
