"""What is said about pictures that are none, are cut off, damaged, or too large to open."""

import contextlib
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fluxserve.core.errors import InvalidRequest, Rule
from fluxserve.images import codec, containers
from fluxserve.images.pixels import Mode
from tests.images.material import FORMS, RED, exif, file_of, quadrants


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    out = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        out += (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )
    return out


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


BROKEN_ANIMATION = png(
    png_header(1, 1),
    (b"acTL", b"\0" * 8),
    (b"IDAT", zlib.compress(b"\0\x10\x20\x30")),
    (b"IEND", b""),
)


def test_a_png_with_a_broken_animation_is_read_without_a_warning() -> None:
    assert codec.decode(BROKEN_ANIMATION).getpixel((0, 0)) == (0x10, 0x20, 0x30)


def test_an_animation_on_a_canvas_too_wide_for_webp_is_kept_in_another_format() -> None:
    moving = file_of(quadrants(), "WEBP", save_all=True, append_images=[quadrants().rotate(90)])
    file = bytearray(moving)
    file[24:27] = (20_000 - 1).to_bytes(3, "little")  # the width of the canvas
    kept = codec.prepare(bytes(file), field="image")
    assert (kept.mime, kept.width, kept.height) == ("image/png", 20_000, 32)
    assert codec.decode(kept.data).size == (20_000, 32)


def cut(form: str, share: float) -> bytes:
    data = file_of(quadrants(320, 200), form)
    return data[: int(len(data) * share)]


def corrupt_png() -> bytes:
    data = bytearray(file_of(quadrants(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def bomb_gif() -> bytes:
    return b"GIF89a" + struct.pack("<HHB", 65535, 65535, 0) + b"\0\0," + bytes(20)


def bomb_gif_by_its_frame() -> bytes:
    head = b"GIF89a" + struct.pack("<HHB", 8, 8, 0) + b"\0\0,"
    return head + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + bytes(20)


def bomb_webp() -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xfe\x3f\0" * 2
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def bomb_jpeg() -> bytes:
    sof = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65000, 65000, 1) + b"\1\x11\0"
    return b"\xff\xd8" + sof + b"\xff\xd9"


def jpeg_segments(*segments: tuple[int, bytes]) -> bytes:
    out = b"\xff\xd8"
    for marker, body in segments:
        out += bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body
    return out


def jpeg_with_two_sizes() -> bytes:
    """A small size in front, for those who look only there, and the true one behind it."""
    data = file_of(quadrants(), "JPEG")
    return jpeg_segments((0xC0, b"\x08\0\x08\0\x08\1\1\x11\0")) + data[2:]


def jpeg_of_many_scans() -> bytes:
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\1\1\0\0\0\0"
    return jpeg_segments((0xC2, b"\x08\0\x08\0\x08\1\1\x11\0")) + scan * 101 + b"\xff\xd9"


def webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def bomb_bmp() -> bytes:
    return b"BM" + bytes(12) + struct.pack("<Iii", 40, 50000, -50000) + bytes(40)


BAD = {
    "empty": (b"", "the file is empty, not a JPEG, PNG, WebP, GIF or BMP picture"),
    "text": (b"hello, world", "the file is something else, not a JPEG"),
    "html": (b"<!DOCTYPE html><html>", "the file is a web page, not a JPEG"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="">', "the file is an SVG drawing, not a JPEG"),
    "json": (b'{"error": "gone"}', "the file is a JSON document, not a JPEG"),
    "heic": (b"\0\0\0\x18ftypheic", "the file is a HEIC file, not a JPEG"),
    "avif": (b"\0\0\0\x18ftypavif", "the file is an AVIF file, not a JPEG"),
    "video": (b"\0\0\0\x18ftypisom", "the file is a video, not a JPEG"),
    "tiff": (b"II*\0\x08\0\0\0", "the file is a TIFF file, not a JPEG"),
    "pdf": (b"%PDF-1.7", "the file is a PDF document, not a JPEG"),
    "jpeg, magic only": (b"\xff\xd8\xff", "the file is cut off"),
    "jpeg, half": (cut("JPEG", 0.5), "the file is cut off"),
    "jpeg, most": (cut("JPEG", 0.9), "the file is cut off"),
    "png, magic only": (b"\x89PNG\r\n\x1a\n", "the file is cut off"),
    "png, half": (cut("PNG", 0.5), "the file is cut off"),
    "png, without its end": (cut("PNG", 1.0)[:-12], "the file is cut off"),
    "png, one byte flipped": (corrupt_png(), "the file is corrupt: a PNG checksum does not match"),
    "png, no header": (png((b"IEND", b"")), "the file is corrupt: it does not start with a PNG"),
    "png, no pixels": (png(png_header(0, 7), (b"IEND", b"")), "the file is corrupt: it has no"),
    "png, too few pixels": (
        png(png_header(64, 64), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")),
        "the file is cut off",
    ),
    "png, pixels of another kind": (
        png(png_header(4, 4), (b"IDAT", b"not deflate at all"), (b"IEND", b"")),
        "the file is corrupt",
    ),
    "png, no palette": (
        png(png_header(4, 4, colour=3), (b"IDAT", zlib.compress(b"\0" * 5 * 4)), (b"IEND", b"")),
        "the file is corrupt: it cannot be decoded",
    ),
    "webp, magic only": (b"RIFF\x04\0\0\0WEBP", "the file is corrupt: it has no pixels"),
    "webp, half": (cut("WEBP", 0.5), "the file is cut off"),
    "gif, half": (cut("GIF", 0.5), "the file is cut off"),
    "gif, magic only": (b"GIF89a", "the file is cut off"),
    "bmp, half": (cut("BMP", 0.5), "the file is cut off"),
    "jpeg, no segments": (b"\xff\xd8\xff\xd9", "the file is corrupt: it has no pixels"),
    "jpeg, garbage": (jpeg_segments((0xE0, b"")) + b"garbage", "the file is corrupt: a JPEG segm"),
    "jpeg, two sizes": (jpeg_with_two_sizes(), "the file is corrupt: it tells two different siz"),
    "jpeg, scan bomb": (jpeg_of_many_scans(), "the file is corrupt: it has too many scans"),
    "jpeg, segment bomb": (
        b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000,
        "the file is corrupt: it has too many segments",
    ),
    "png, segment bomb": (
        png(png_header(1, 1)) + png((b"tEXt", b""))[8:] * 1_000_000,
        "the file is corrupt: it has too many segments",
    ),
    "webp, no key frame": (webp(b"VP8 ", bytes(20)), "the file is corrupt: a WebP frame does not"),
    "webp, chunk too long": (
        webp(b"VP8 ", bytes(20))[:16] + b"\xff\xff\0\0" + bytes(20),
        "the file is cut off",
    ),
    "webp, segment bomb": (
        b"RIFF" + struct.pack("<I", 8_000_004) + b"WEBP" + b"ABCD\0\0\0\0" * 1_000_000,
        "the file is corrupt: it has too many segments",
    ),
    "gif, no frame": (
        b"GIF89a" + struct.pack("<HHB", 8, 8, 0) + b"\0\0;",
        "the file is corrupt: it has no pixels",
    ),
    "gif, segment bomb": (
        b"GIF89a" + struct.pack("<HHB", 8, 8, 0) + b"\0\0!\xfe" + b"\1x" * 1_000_000,
        "the file is corrupt: it has too many segments",
    ),
    "bomb, png": (
        png(png_header(40000, 40000), (b"IDAT", b"x"), (b"IEND", b"")),
        "at most 64 megapixels, not 40000 x 40000 (1600.0)",
    ),
    "bomb, gif": (bomb_gif(), "at most 64 megapixels, not 65535 x 65535 (4294.8)"),
    "bomb, gif frame": (bomb_gif_by_its_frame(), "at most 64 megapixels, not 65535 x 65535"),
    "bomb, webp": (bomb_webp(), "at most 64 megapixels, not 16383 x 16383 (268.4)"),
    "bomb, jpeg": (bomb_jpeg(), "at most 64 megapixels, not 65000 x 65000 (4225.0)"),
    "bomb, bmp": (bomb_bmp(), "at most 64 megapixels, not 50000 x 50000 (2500.0)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_clear_error(name: str) -> None:
    data, text = BAD[name]
    for read in (codec.prepare, codec.decode):
        with pytest.raises(InvalidRequest) as caught:
            read(data, field="input_image")
        assert caught.value.field == "input_image"
        assert caught.value.message.startswith(f"input_image: {text}")
        assert caught.value.problems[0].field == "input_image"


def test_the_pixel_cap_is_a_limit_that_dialects_can_word() -> None:
    with pytest.raises(InvalidRequest) as caught:
        codec.prepare(file_of(quadrants(), "PNG"), field="image", pixels_max=1000)
    (problem,) = caught.value.problems
    assert (problem.rule, problem.limit) == (Rule.MAX, 1000)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.97))
def test_a_file_that_is_cut_off_anywhere_is_refused(form: str, share: float) -> None:
    data = file_of(quadrants(64, 64), form)
    with pytest.raises(InvalidRequest):
        codec.prepare(data[: int(len(data) * share)])


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read_but_never_break_anything(
    form: str, data: st.DataObject
) -> None:
    file = bytearray(file_of(quadrants(), form, exif=exif(6)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(file) - 1))
        file[position] = data.draw(st.integers(0, 255))
    stands_or_is_refused(bytes(file))


def stands_or_is_refused(data: bytes) -> None:
    """No other error comes out, and what the intake keeps can be decoded when a job runs."""
    with contextlib.suppress(InvalidRequest):
        codec.decode(data)
    try:
        kept = codec.prepare(data)
    except InvalidRequest:
        return
    for mode in MODES:
        image = codec.decode(kept.data, mode)
        assert (image.mode, image.size) == (mode, (kept.width, kept.height))


MODES: tuple[Mode, ...] = ("RGB", "RGBA", "L")
COLOURED: dict[str, tuple[Image.Image, dict[str, object]]] = {
    "true": (quadrants(), {}),
    "true with a transparent colour": (quadrants(), {"transparency": RED}),
    "numbered": (quadrants().quantize(4), {"transparency": b"\0\x80"}),
    "grey": (quadrants().convert("L"), {"transparency": 3}),
    "grey of 16 bits": (Image.new("I;16", (9, 9), 300), {"transparency": 300}),
    "grey with alpha": (quadrants().convert("LA"), {}),
    "black and white": (quadrants().convert("1"), {"transparency": 1}),
}
PNG_KINDS = [b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"fdAT"]


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


@pytest.mark.parametrize("name", COLOURED)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_png_with_chunks_lost_cut_or_added_is_refused_or_read(
    name: str, data: st.DataObject
) -> None:
    image, options = COLOURED[name]
    chunks = png_chunks(file_of(image, "PNG", **options))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(chunks) - 1))
        kind, body = chunks[at]
        match data.draw(st.sampled_from(["lost", "cut", "altered", "added"])):
            case "lost" if len(chunks) > 1:
                del chunks[at]
            case "cut":
                chunks[at] = (kind, body[: data.draw(st.integers(0, len(body)))])
            case "altered":
                position = data.draw(st.integers(0, len(body)))
                byte = bytes([data.draw(st.integers(0, 255))])
                chunks[at] = (kind, body[:position] + byte + body[position + 1 :])
            case "added":
                new = data.draw(st.sampled_from(PNG_KINDS))
                chunks.insert(at, (new, data.draw(st.binary(max_size=40))))
    stands_or_is_refused(png(*chunks))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBP", b"GIF89a", b"BM"]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_are_sniffed_without_surprise(magic: bytes, rest: bytes) -> None:
    data = magic + rest
    kind = containers.sniff(data)
    assert kind is None or kind.startswith("image/")
    try:
        container = containers.read(data)
    except containers.BadContainer:
        return
    assert container.mime == kind
    assert container.width > 0
    assert container.height > 0
