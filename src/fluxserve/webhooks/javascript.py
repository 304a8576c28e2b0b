"""JSON as JavaScript writes it, so that a body survives being parsed and written again there.

Receivers built on the official JavaScript validators check the signature of the parsed body
after `JSON.stringify`. What is sent must be exactly that text: no spaces, characters as they
are, numbers in JavaScript's notation, keys that look like array indexes first.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal

from fluxserve.core.request import JSON

_SURROGATE = re.compile("[\ud800-\udfff]")
_INDEX = re.compile(r"0|[1-9]\d{0,9}")
_INDEX_MAX = 2**32 - 2  # the largest array index of JavaScript


def to_json(value: JSON) -> bytes:
    """`JSON.stringify(value)` in UTF-8. Integers keep all their digits, however many."""
    return "".join(_write(value)).encode()


def _write(value: JSON) -> Iterator[str]:
    match value:
        case None:
            yield "null"
        case bool():
            yield "true" if value else "false"
        case str():
            yield _string(value)
        case int():
            yield str(value)
        case float():
            yield number(value)
        case Mapping():
            mark = "{"
            for key in sorted(value, key=_place):
                yield mark
                yield _string(key)
                yield ":"
                yield from _write(value[key])
                mark = ","
            yield "}" if value else "{}"
        case _:
            mark = "["
            for item in value:
                yield mark
                yield from _write(item)
                mark = ","
            yield "]" if value else "[]"


def _place(key: str) -> int:
    """Array indexes by their number, everything else after them in the given order."""
    if _INDEX.fullmatch(key) and int(key) <= _INDEX_MAX:
        return int(key)
    return _INDEX_MAX + 1


def _string(text: str) -> str:
    written = json.dumps(text, ensure_ascii=False)
    if not _SURROGATE.search(written):
        return written
    # Halves that belong together become one character; lonely ones are escaped.
    written = written.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", written)


def number(value: float) -> str:
    """A float in the notation of ECMAScript's Number::toString; NaN and infinities are null."""
    if not math.isfinite(value):
        return "null"
    if value == 0:
        return "0"
    # Both languages write the shortest digits that read back as the same number.
    sign, digits_of, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    digits = "".join(map(str, digits_of))
    point = len(digits) + exponent  # where the decimal point stands, counted from the left
    minus = "-" if sign else ""
    if 0 < point <= 21:
        whole, rest = digits[:point].ljust(point, "0"), digits[point:]
        return minus + (f"{whole}.{rest}" if rest else whole)
    if -6 < point <= 0:
        return f"{minus}0.{'0' * -point}{digits}"
    mantissa = f"{digits[0]}.{digits[1:]}" if len(digits) > 1 else digits
    return f"{minus}{mantissa}e{point - 1:+d}"
