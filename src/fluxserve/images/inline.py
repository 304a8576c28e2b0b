"""Pictures inside a request body: raw base64 and data URIs.

    text -> is_data_uri()? -> decode_data_uri() -> bytes
                    else   -> decode_base64()   -> bytes

The length is judged before anything is decoded. Well-formed base64 is decoded straight from the
text; only line breaks, the URL-safe alphabet or missing padding cost one more copy.
"""

import binascii
from urllib.parse import unquote

from fluxserve.core.errors import InvalidRequest, Problem, Rule, TooLarge

_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WHITE = " \r\n\t"
_PEEK = 64  # characters that tell whether a long text can be base64 at all
_PIECE = 1 << 20  # characters decoded at once; a multiple of 4
_HEAD_MAX = 256  # a data URI names its type within so many characters


def is_data_uri(text: str) -> bool:
    return text[:5].lower() == "data:"


def decode_data_uri(text: str, *, field: str, size_max_bytes: int) -> bytes:
    """The bytes of `data:[type][;parameter];base64,...`; the type is not believed.

    Raises InvalidRequest or TooLarge, naming `field`.
    """
    comma = text.find(",", 0, _HEAD_MAX)
    if comma < 0:
        raise _invalid(field, "a data URI needs a comma before its data")
    head = text[:comma].lower().rstrip()
    if not head.endswith(";base64"):
        raise _invalid(field, "a data URI of a picture must be base64: data:image/png;base64,...")
    start = comma + 1
    if "%" in text[start : start + _PEEK] or "%" in text[-_PEEK:]:
        _judge(text, start, field, size_max_bytes)
        text, start = unquote(text[start:]), 0
    return _decode(text, start, field, size_max_bytes)


def decode_base64(text: str, *, field: str, size_max_bytes: int) -> bytes:
    """The bytes of a base64 text: standard or URL-safe, padded or not, line breaks allowed.

    Raises InvalidRequest or TooLarge, naming `field`.
    """
    return _decode(text, 0, field, size_max_bytes)


def _decode(text: str, start: int, field: str, size_max_bytes: int) -> bytes:
    """The bytes behind text[start:]."""
    _judge(text, start, field, size_max_bytes)
    _squeeze(text[start : start + _PEEK], field)  # what is something else is refused at once
    try:
        data = _decode_plain(text, start)
    except ValueError:  # not the plain form
        data = _decode_tolerantly(text[start:], field)
    if not data:
        raise _invalid(field, "an image is needed, but the text is empty")
    return data


def _judge(text: str, start: int, field: str, size_max_bytes: int) -> None:
    """Raise TooLarge when the decoded bytes would exceed the cap."""
    length = len(text) - start
    if length // 4 * 3 <= size_max_bytes:
        return
    size_bytes = (length - sum(text.count(white, start) for white in _WHITE + "=")) * 3 // 4
    if size_bytes <= size_max_bytes:
        return
    message = f"at most {size_max_bytes / 1e6:g} MB, not {size_bytes / 1e6:.1f} MB"
    problem = Problem(field=field, rule=Rule.MAX, message=message, limit=size_max_bytes)
    said = f"{field}: {message}" if field else message
    raise TooLarge(said, field=field or None, problems=[problem])


def _decode_plain(text: str, start: int) -> bytes:
    """Padded standard base64 without white space; ValueError for anything else.

    Piece by piece: decoding holds the interpreter, and 8 MB at once would stop everybody else
    for some 60 ms.
    """
    pieces: list[bytes] = []
    for place in range(start, len(text), _PIECE):
        if pieces and len(pieces[-1]) < _PIECE // 4 * 3:
            raise ValueError("padding before the end")
        pieces.append(binascii.a2b_base64(text[place : place + _PIECE], strict_mode=True))
    return b"".join(pieces)


def _decode_tolerantly(text: str, field: str) -> bytes:
    letters = _squeeze(text, field)
    if len(letters) % 4 == 1:
        raise _invalid(field, "base64 that is cut off: one character is left over")
    letters += b"=" * (-len(letters) % 4)
    # The alphabet is checked. Not strict: unused bits of the last letter may be set.
    return binascii.a2b_base64(letters)


def _squeeze(text: str, field: str) -> bytes:
    """The base64 letters of `text` in the standard alphabet, white space and padding gone."""
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError as error:
        raise _not_base64(field) from error
    letters = raw.translate(_FROM_URL_SAFE, _WHITE.encode()).rstrip(b"=")
    if letters.translate(None, _STANDARD):
        raise _not_base64(field)
    return letters


def _not_base64(field: str) -> InvalidRequest:
    return _invalid(
        field, "an http(s) URL, a data URI or base64 is needed, and the text is none of these"
    )


def _invalid(field: str, message: str) -> InvalidRequest:
    problem = Problem(field=field, rule=Rule.FORMAT, message=message, expected="base64")
    return InvalidRequest.of([problem])
