"""Base64 and data URIs: what is read, what is refused, and before which work."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.core.errors import InvalidRequest, TooLarge
from fluxserve.images.inline import decode_base64, decode_data_uri, is_data_uri

CAP = 1_000_000


def read(text: str, size_max_bytes: int = CAP) -> bytes:
    return decode_base64(text, field="image", size_max_bytes=size_max_bytes)


def read_uri(text: str) -> bytes:
    return decode_data_uri(text, field="image", size_max_bytes=CAP)


@given(
    st.binary(min_size=1), st.booleans(), st.booleans(), st.sampled_from(["", "\n", "\r\n", " "])
)
def test_every_usual_spelling_is_read(
    data: bytes, is_url_safe: bool, is_padded: bool, line_end: str
) -> None:
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(data).decode()
    if not is_padded:
        text = text.rstrip("=")
    if line_end:
        text = line_end.join(text[i : i + 76] for i in range(0, len(text), 76)) + line_end
    assert read(text) == data
    assert read_uri(f"data:image/png;base64,{text}") == data


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        data = read(text)
    except InvalidRequest:
        return
    letters = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    assert base64.b64encode(data).decode().rstrip("=")[:-1] == letters[:-1]


@given(st.text(alphabet="data:;base64,=%2B/imgABC ", max_size=80))
def test_any_data_uri_is_read_or_refused(text: str) -> None:
    try:
        data = read_uri("data:" + text)
    except InvalidRequest:
        return
    assert data


@pytest.mark.parametrize(
    "text",
    [
        "data:;base64,aGk=",
        "data:image/png;base64,aGk=",
        "DATA:IMAGE/PNG;BASE64,aGk=",
        "data:application/octet-stream;base64,aGk",
        "data:image/png;charset=utf-8;base64,aGk=",
        "data:image/png;base64,aGk%3D",
        "data:base64;base64,\naGk=\n",
    ],
)
def test_data_uris_are_read_whatever_type_they_claim(text: str) -> None:
    assert is_data_uri(text)
    assert read_uri(text) == b"hi"


NONE_OF_THESE = "image: an http(s) URL, a data URI or base64 is needed, and the text is none"
BAD = {
    "": "image: an image is needed, but the text is empty",
    "\n \n": "image: an image is needed, but the text is empty",
    "====": "image: an image is needed, but the text is empty",
    "hello, world": NONE_OF_THESE,
    "file:///etc/passwd": NONE_OF_THESE,
    "ftp://host/a.png": NONE_OF_THESE,
    "aGk=aGk=": NONE_OF_THESE,
    "aGkä": NONE_OF_THESE,
    "\ud800": NONE_OF_THESE,
    "aGk\0": NONE_OF_THESE,
    "a": "image: base64 that is cut off: one character is left over",
    "aGkaG": "image: base64 that is cut off: one character is left over",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_base64_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(text)
    assert caught.value.message.startswith(BAD[text])


BAD_URIS = {
    "data:": "image: a data URI needs a comma before its data",
    "data:image/png;base64;aGk=": "image: a data URI needs a comma before its data",
    "data:" + "x" * 300 + ",": "image: a data URI needs a comma before its data",
    "data:image/svg+xml,<svg/>": "image: a data URI of a picture must be base64: data:image/",
    "data:image/png;base64,": "image: an image is needed, but the text is empty",
    "data:image/png;base64,%%%": NONE_OF_THESE,
}


@pytest.mark.parametrize("text", BAD_URIS)
def test_bad_data_uris_are_refused_with_the_reason(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_uri(text)
    assert caught.value.message.startswith(BAD_URIS[text])


def test_the_cap_is_judged_by_length_before_anything_is_decoded() -> None:
    assert len(read(base64.b64encode(bytes(99)).decode(), 99)) == 99
    assert len(read(base64.encodebytes(bytes(99)).decode(), 99)) == 99
    for size in (100, 101, 102):
        with pytest.raises(TooLarge) as caught:
            read(base64.b64encode(bytes(size)).decode(), 99)
        assert caught.value.field == "image"
    with pytest.raises(TooLarge, match=r"image: at most 1 MB, not 3\.0 MB"):
        read("!" * 4_000_000)  # not even looked at
    with pytest.raises(TooLarge):
        read_uri("data:;base64,%41" + "A" * 4_000_000)


def test_a_long_text_that_turns_bad_late_is_refused_too() -> None:
    with pytest.raises(InvalidRequest):
        read("QUJD" * 10_000 + "!!!!")


def test_a_text_of_many_pieces_is_read_like_a_short_one() -> None:
    data = bytes(range(256)) * 12_000
    text = base64.b64encode(data).decode()
    assert len(text) > 3 << 20
    assert read(text, 10**7) == data
    assert decode_data_uri("data:;base64," + text, field="", size_max_bytes=10**7) == data


def test_padding_between_two_pieces_is_refused() -> None:
    piece = base64.b64encode(bytes((3 << 18) - 1)).decode()
    assert len(piece) == 1 << 20
    with pytest.raises(InvalidRequest):
        read(piece + piece, 10**7)


def test_without_a_field_the_message_stands_alone() -> None:
    with pytest.raises(TooLarge) as caught:
        decode_base64("A" * 400, field="", size_max_bytes=100)
    assert caught.value.message == "at most 0.0001 MB, not 0.0 MB"
    assert caught.value.field is None
