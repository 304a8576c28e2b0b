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
    body = text[comma + 1 :]
    if "%" in body[-_PEEK:] or "%" in body[:_PEEK]:
        _judge(body, field, size_max_bytes)
        body = unquote(body)
    return decode_base64(body, field=field, size_max_bytes=size_max_bytes)


def decode_base64(text: str, *, field: str, size_max_bytes: int) -> bytes:
    """The bytes of a base64 text: standard or URL-safe, padded or not, line breaks allowed.

    Raises InvalidRequest or TooLarge, naming `field`.
    """
    _judge(text, field, size_max_bytes)
    _squeeze(text[:_PEEK], field)  # a long text that is something else is refused at once
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # not the plain form
        data = _decode_tolerantly(text, field)
    if not data:
        raise _invalid(field, "an image is needed, but the text is empty")
    return data


def _judge(text: str, field: str, size_max_bytes: int) -> None:
    """Raise TooLarge when the decoded bytes would exceed the cap."""
    if len(text) // 4 * 3 <= size_max_bytes:
        return
    size_bytes = (len(text) - sum(map(text.count, _WHITE + "="))) * 3 // 4
    if size_bytes > size_max_bytes:
        cap, size = size_max_bytes / 1e6, size_bytes / 1e6
        message = f"at most {cap:g} MB, not {size:.1f} MB"
        problem = Problem(field=field, rule=Rule.MAX, message=message, limit=size_max_bytes)
        text_of_it = f"{field}: {message}" if field else message
        raise TooLarge(text_of_it, field=field or None, problems=[problem])


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
