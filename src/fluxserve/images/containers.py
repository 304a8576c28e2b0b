"""What a picture file says about itself, read from its bytes before anything is decoded.

    bytes -> read() -> Container: format, size, orientation, and the bytes without metadata

Nothing here trusts a name or a declared type, and nothing allocates by what a header claims, so
the pixel cap can be judged before a decoder sees the file. EXIF, XMP, comments, thumbnails and
whatever follows the end of the picture are left out of `clean`; colour profiles stay.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

FORMATS = "JPEG, PNG, WebP, GIF or BMP"
# A file of four-byte segments would keep the reader busy for seconds. Real files have dozens; a
# PNG of 100 MB in the usual 8 kB chunks has 12,800.
SEGMENTS_MAX = 50_000
# Each scan of a progressive JPEG walks over the whole picture, however small it is in the file.
# Encoders write some ten; a bomb writes thousands.
SCANS_MAX = 100


class BadContainer(ValueError):
    """The file is no picture, or not a whole one. The message continues "the file ..."."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The facts of one picture file."""

    mime: str
    width: int  # px, as stored: before `orientation` is applied
    height: int  # px
    clean: bytes  # the same picture without metadata; the very same object if there was none
    orientation: int = 1  # EXIF, 1 .. 8
    is_animated: bool = False
    is_lossless: bool = True


def sniff(data: bytes) -> str | None:
    """The media type that the first bytes prove, or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if data[:2] == b"BM" and len(data) >= 18 and data[14:18] in _BMP_HEADER_SIZES:
        return "image/bmp"
    return None


def read(data: bytes) -> Container:
    """Read the file's own account of itself; BadContainer says what is wrong with it."""
    reader = _READERS.get(sniff(data) or "")
    if reader is None:
        raise BadContainer(f"is {_describe(data)}, not a {FORMATS} picture")
    try:
        container = reader(data)
    except (struct.error, IndexError) as error:
        raise BadContainer("is cut off") from error
    if container.width < 1 or container.height < 1:
        raise BadContainer("is corrupt: it has no pixels")
    return container


_OTHER_KINDS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\s*(<!doctype html|<html)", re.I), "a web page"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.I | re.S), "an SVG drawing"),
    (re.compile(rb".{4}ftyp(avif|avis)", re.S), "an AVIF file"),
    (re.compile(rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.S), "a HEIC file"),
    (re.compile(rb".{4}ftyp", re.S), "a video"),
    (re.compile(rb"(II\*\x00|MM\x00\*)"), "a TIFF file"),
    (re.compile(rb"%PDF-"), "a PDF document"),
    (re.compile(rb"\s*[{\[]"), "a JSON document"),
)


def _describe(data: bytes) -> str:
    """What the file is instead, for the error message."""
    if not data:
        return "empty"
    head = data[:512]
    for pattern, name in _OTHER_KINDS:
        if pattern.match(head):
            return name
    return "something else"


# --- JPEG ---------------------------------------------------------------------------------------

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_EOI, _SOS, _APP1, _APP2, _COM = 0xD9, 0xDA, 0xE1, 0xE2, 0xFE
# JFIF and Adobe's segment say how the numbers become colours, so they stay.
_APP_KEPT = frozenset({0xE0, 0xEE})
# In entropy-coded data an FF is followed by 00, a restart marker, or another FF as filling.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _read_jpeg(data: bytes) -> Container:
    parts = _Parts(data)
    size: tuple[int, int] | None = None
    orientation, scans = 1, 0
    position = 2
    for _ in _segments():
        start = position
        if data[position] != 0xFF:
            raise BadContainer("is corrupt: a JPEG segment does not start where it should")
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker == _EOI:
            break
        if marker in _STANDALONE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        body, position = position + 2, position + max(2, length)
        if position > len(data):
            raise BadContainer("is cut off")
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, body + 1)
            size = size or (width, height)
        elif marker == _SOS:
            scans += 1
            if scans > SCANS_MAX:
                raise BadContainer("is corrupt: it has too many scans")
            found = _NEXT_MARKER.search(data, position)
            # Without an end marker the pixels may still be complete: the decoder will tell.
            position = found.start() if found else len(data)
            if found is None:
                break
        elif marker == _APP1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _orientation(data[body + 6 : position])
        if _is_jpeg_metadata(marker, data[body : body + 12]):
            parts.drop(start, position)
    if size is None:
        raise BadContainer("is corrupt: it has no pixels")
    parts.drop(position, len(data))
    return Container(
        mime="image/jpeg",
        width=size[0],
        height=size[1],
        clean=parts.join(),
        orientation=orientation,
        is_lossless=False,
    )


def _is_jpeg_metadata(marker: int, head: bytes) -> bool:
    if marker == _APP2:
        return not head.startswith(b"ICC_PROFILE\0")
    return marker == _COM or (0xE0 <= marker <= 0xEF and marker not in _APP_KEPT)


# --- PNG ----------------------------------------------------------------------------------------

# Ancillary chunks that bear on the pixels. Text, time, EXIF and animation are left out.
_PNG_KEPT = frozenset(
    {b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"pHYs"}
)


def _read_png(data: bytes) -> Container:
    parts = _Parts(data)
    size = (0, 0)
    orientation = 1
    position = 8
    view = memoryview(data)
    for _ in _segments():
        start = position
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if position > len(data):
            raise BadContainer("is cut off")
        (checksum,) = struct.unpack_from(">I", data, position - 4)
        if zlib.crc32(view[start + 4 : position - 4]) != checksum:
            raise BadContainer("is corrupt: a PNG checksum does not match")
        if start == 8:
            if kind != b"IHDR" or length != 13:
                raise BadContainer("is corrupt: it does not start with a PNG header")
            size = struct.unpack_from(">II", data, start + 8)
        if kind == b"eXIf":
            orientation = _orientation(data[start + 8 : position - 4])
        if kind == b"IEND":
            break
        is_ancillary = bool(kind[0] & 0x20)
        if is_ancillary and kind not in _PNG_KEPT:
            parts.drop(start, position)
    parts.drop(position, len(data))
    return Container(
        mime="image/png",
        width=size[0],
        height=size[1],
        clean=parts.join(),
        orientation=orientation,
    )


# --- WebP ---------------------------------------------------------------------------------------

_WEBP_ANIMATED, _WEBP_XMP, _WEBP_EXIF = 0x02, 0x04, 0x08


def _read_webp(data: bytes) -> Container:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    end = 8 + riff_size
    if end > len(data):
        raise BadContainer("is cut off")
    parts = _Parts(data)
    size: tuple[int, int] | None = None
    orientation, flags, is_lossless = 1, 0, False
    position = 12
    for _ in _segments():
        if position + 8 > end:
            break
        start = position
        kind, length = struct.unpack_from("<4sI", data, position)
        body = position + 8
        position = body + length + (length & 1)
        if body + length > end:
            raise BadContainer("is cut off")
        if kind == b"VP8X":
            flags = data[body]
            size = (_u24(data, body + 4) + 1, _u24(data, body + 7) + 1)
        elif kind in (b"VP8 ", b"VP8L"):
            is_lossless = kind == b"VP8L"
            size = size or _webp_frame_size(kind, data, body)
        elif kind == b"EXIF":
            orientation = _orientation(data[body : body + length].removeprefix(b"Exif\0\0"))
        if kind in (b"EXIF", b"XMP "):
            parts.drop(start, min(position, len(data)))
    if size is None:
        raise BadContainer("is corrupt: it has no pixels")
    parts.drop(end, len(data))
    return Container(
        mime="image/webp",
        width=size[0],
        height=size[1],
        clean=_webp_resized(parts.join(), data),
        orientation=orientation,
        is_animated=bool(flags & _WEBP_ANIMATED),
        is_lossless=is_lossless,
    )


def _webp_frame_size(kind: bytes, data: bytes, body: int) -> tuple[int, int]:
    if kind == b"VP8L":  # one signature byte, then 14 bits each of width - 1 and height - 1
        (bits,) = struct.unpack_from("<I", data, body + 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[body + 3 : body + 6] != b"\x9d\x01\x2a":
        raise BadContainer("is corrupt: a WebP frame does not start with a key frame")
    width, height = struct.unpack_from("<HH", data, body + 6)
    return width & 0x3FFF, height & 0x3FFF  # the upper two bits are a scaling hint


def _webp_resized(clean: bytes, data: bytes) -> bytes:
    """Put the new length into the RIFF header, and take back the promise of EXIF and XMP."""
    if clean is data:
        return data
    fixed = bytearray(clean)
    struct.pack_into("<I", fixed, 4, len(fixed) - 8)
    if fixed[12:16] == b"VP8X":
        fixed[20] &= ~(_WEBP_EXIF | _WEBP_XMP)
    return bytes(fixed)


def _u24(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 3], "little")


# --- GIF and BMP --------------------------------------------------------------------------------


def _read_gif(data: bytes) -> Container:
    width, height, packed = struct.unpack_from("<HHB", data, 6)
    position = 13 + (_colour_table_bytes(packed))
    segments = iter(_segments())
    while data[position] != 0x2C:  # until the first frame
        if data[position] != 0x21:
            raise BadContainer("is corrupt: it has no pixels")
        position += 2  # an extension: its label, then blocks, then an empty one
        while data[position]:
            next(segments)
            position += 1 + data[position]
        next(segments)
        position += 1
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
    # A frame may reach beyond the screen; decoders then grow the picture.
    return Container(
        mime="image/gif",
        width=max(width, left + frame_width),
        height=max(height, top + frame_height),
        clean=data,
    )


def _colour_table_bytes(packed: int) -> int:
    return int(3 * 2 ** ((packed & 7) + 1)) if packed & 0x80 else 0


_BMP_HEADER_SIZES = frozenset(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))


def _read_bmp(data: bytes) -> Container:
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    # A negative height means that the rows run from top to bottom.
    return Container(mime="image/bmp", width=width, height=abs(height), clean=data)


_READERS = {
    "image/jpeg": _read_jpeg,
    "image/png": _read_png,
    "image/webp": _read_webp,
    "image/gif": _read_gif,
    "image/bmp": _read_bmp,
}


# --- shared -------------------------------------------------------------------------------------


def _segments() -> Iterator[None]:
    """As many turns as a file may have segments; BadContainer after them."""
    yield from repeat(None, SEGMENTS_MAX)
    raise BadContainer("is corrupt: it has too many segments")


class _Parts:
    """The byte ranges of a file that stay."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._dropped: list[tuple[int, int]] = []

    def drop(self, start: int, end: int) -> None:
        if self._dropped and self._dropped[-1][1] == start:
            start = self._dropped.pop()[0]
        if start < end:
            self._dropped.append((start, end))

    def join(self) -> bytes:
        """What stays; the very same object when nothing was dropped."""
        if not self._dropped:
            return self._data
        return b"".join(self._kept())

    def _kept(self) -> Iterable[memoryview]:
        view = memoryview(self._data)
        position = 0
        for start, end in self._dropped:
            yield view[position:start]
            position = end
        yield view[position:]


def _orientation(tiff: bytes) -> int:
    """The orientation tag (0x0112) of an EXIF block; 1 when it has none or makes no sense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112 and kind == 3 and 1 <= value <= 8:
                return int(value)
    except struct.error:  # a damaged block: the picture is shown as it is stored
        return 1
    return 1
