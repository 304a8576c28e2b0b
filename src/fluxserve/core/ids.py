"""One random 128-bit id, in the alphabet of every dialect.

Inside the house an id is 32 lower-case hex digits; every dialect reads every form.
"""

import re
import secrets
import uuid

# Crockford's base 32 in lower case: no i, l, o, u. 26 characters hold 130 bits, two of them zero.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUE = {character: value for value, character in enumerate(ALPHABET)}

_HEX = re.compile(r"[0-9a-f]{32}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BASE32 = re.compile(rf"[0-7][{ALPHABET}]{{25}}")


def new_id() -> str:
    return secrets.token_hex(16)


def to_base32(id_: str) -> str:
    """26 characters of [0-9a-z], as Replicate shows ids."""
    number = int(id_, 16)
    return "".join(ALPHABET[(number >> shift) & 31] for shift in range(125, -5, -5))


def to_uuid(id_: str) -> str:
    """8-4-4-4-12 hex digits, as BFL, OpenAI and fal show ids."""
    return str(uuid.UUID(hex=id_))


def parse_id(text: str) -> str | None:
    """The id behind any of its spellings, or None when it is none."""
    text = text.strip().lower()
    if _HEX.fullmatch(text):
        return text
    if _UUID.fullmatch(text):
        return text.replace("-", "")
    if _BASE32.fullmatch(text):
        number = 0
        for character in text:
            number = number << 5 | _VALUE[character]
        return f"{number:032x}"
    return None
