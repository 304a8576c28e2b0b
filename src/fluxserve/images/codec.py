"""Picture files to pixels and back. Pure and synchronous: call it in a thread.

upload -> prepare() -> stored bytes: upright, no metadata, JPEG, PNG or WebP
stored bytes -> decode() -> PIL image      PIL image -> encode() -> EncodedImage
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fluxserve.core.errors import InvalidRequest, Problem, Rule
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import OutputFormat
from fluxserve.images import containers
from fluxserve.images.containers import BadContainer, Container
from fluxserve.images.pixels import Mode, convert, flatten, upright

PIXELS_MAX = 64_000_000  # 256 MB once decoded with alpha
REENCODE_QUALITY = 95  # when an input must be turned upright

# One 1024 x 1024 photo on one core: level 1 takes 0.15 s, level 6 (zlib's default) 0.35 s and saves
# 11 % of the bytes; level 0 takes 0.07 s and needs 59 % more.
PNG_COMPRESS_LEVEL = 1
# Method 2 takes 0.09 s where 4 (the default) takes 0.22 s, for files of the same size.
WEBP_METHOD = 2
WEBP_SIDE_MAX = 16383  # px, of the format
# From here on colours keep their full resolution; below, halving it saves a quarter of the file.
JPEG_FULL_COLOUR_QUALITY = 90

# The classes themselves, not Image.open: the format is proved already, no other may be tried, and
# the size was judged by our own cap.
_OPENERS: dict[str, type[ImageFile]] = {
    "image/jpeg": JpegImageFile,
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
    "image/bmp": BmpImageFile,
}
# What decoders raise on bytes that somebody damaged, by accident or on purpose.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def prepare(data: bytes, *, field: str = "", pixels_max: int = PIXELS_MAX) -> EncodedImage:
    """Check an uploaded picture and make it fit to be kept.

    What comes back is JPEG, PNG or WebP, upright and without metadata. The bytes stay as they
    are (the same object, if there was no metadata) unless the picture must be turned, moves, or
    is a GIF or BMP: then it is written anew, and only its first frame.
    Raises InvalidRequest naming `field`: no picture, cut off, corrupt, too many pixels.
    """
    container = _read(data, field, pixels_max)
    if container.orientation == 1 and container.mime in _KEPT_AS_IS and not container.is_animated:
        _prove(container, field)
        return EncodedImage(
            data=container.clean,
            mime=container.mime,
            width=container.width,
            height=container.height,
        )
    image = _pixels(container, field)
    # A profile is applied here, so the new file needs none.
    with _decoding(field):
        image = convert(image, "RGBA" if image.has_transparency_data else "RGB")
    return _rewrite(image, container)


_KEPT_AS_IS = frozenset({"image/jpeg", "image/png", "image/webp"})


def decode(
    data: bytes, mode: Mode = "RGB", *, field: str = "", pixels_max: int | None = PIXELS_MAX
) -> Image.Image:
    """The pixels of a picture file: upright, sRGB, 8 bits, the first frame if it moves.

    With None for `pixels_max` the size is not judged again: only for what `prepare` has let in,
    by a limit that is a setting.
    Transparency is laid over white unless `mode` is RGBA. Raises InvalidRequest naming `field`.
    """
    image = _pixels(_read(data, field, pixels_max), field)
    with _decoding(field):
        image = convert(image, mode)
    image.info.clear()
    return image


def encode(image: Image.Image, form: OutputFormat, quality: int = 95) -> EncodedImage:
    """Write a picture without metadata. `quality` is 0 .. 100, for JPEG and lossy WebP."""
    assert 0 <= quality <= 100
    if form is OutputFormat.JPEG and image.mode not in ("RGB", "L"):
        image = flatten(image) if image.has_transparency_data else image.convert("RGB")
    out = io.BytesIO()
    match form:
        case OutputFormat.PNG:
            image.save(out, "PNG", compress_level=PNG_COMPRESS_LEVEL, icc_profile=None)
        case OutputFormat.JPEG:
            subsampling = "4:4:4" if quality >= JPEG_FULL_COLOUR_QUALITY else "4:2:0"
            image.save(out, "JPEG", quality=quality, subsampling=subsampling, icc_profile=None)
        case OutputFormat.WEBP:
            image.save(out, "WEBP", quality=quality, method=WEBP_METHOD, icc_profile=None)
    return EncodedImage(data=out.getvalue(), mime=form.mime, width=image.width, height=image.height)


def _read(data: bytes, field: str, pixels_max: int | None) -> Container:
    try:
        container = containers.read(data)
    except BadContainer as error:
        raise _invalid(field, f"the file {error}") from error
    pixels = container.width * container.height
    if pixels_max is not None and pixels > pixels_max:
        size = f"{container.width} x {container.height}"
        message = f"at most {pixels_max / 1e6:g} megapixels, not {size} ({pixels / 1e6:.1f})"
        raise _invalid(field, message, rule=Rule.MAX, limit=pixels_max)
    return container


def _prove(container: Container, field: str) -> None:
    """Decode it once, to know that it is whole and that its colours can be read."""
    with _open(container, field) as image, _decoding(field):
        if container.mime == "image/jpeg":
            # At an eighth of the size every byte is still read, in half the time and 1/64 of
            # the memory.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        _load(image)


def _pixels(container: Container, field: str) -> Image.Image:
    image = _open(container, field)
    with _decoding(field):
        _load(image)
        return upright(image, container.orientation)


def _open(container: Container, field: str) -> ImageFile:
    with _decoding(field):
        image = _OPENERS[container.mime](io.BytesIO(container.clean))
    if image.size != (container.width, container.height):
        raise _invalid(field, "the file is corrupt: it tells two different sizes")
    return image


def _load(image: ImageFile) -> None:
    read: Callable[[], object] = image.load  # untyped in older versions of Pillow
    read()
    if image.mode == "P" and image.palette is None:
        raise ValueError("colours by number, and no table of them")


@contextmanager
def _decoding(field: str) -> Iterator[None]:
    """Whatever decoders raise becomes InvalidRequest naming `field`."""
    try:
        yield
    except _DECODER_ERRORS as error:
        is_cut_off = "truncated" in str(error)
        what = "cut off" if is_cut_off else "corrupt: it cannot be decoded"
        raise _invalid(field, f"the file is {what}") from error


def _rewrite(image: Image.Image, container: Container) -> EncodedImage:
    if container.mime == "image/jpeg":
        return encode(image, OutputFormat.JPEG, REENCODE_QUALITY)
    fits = max(image.size) <= WEBP_SIDE_MAX  # the canvas of an animation may be larger
    if container.mime == "image/webp" and not container.is_lossless and fits:
        return encode(image, OutputFormat.WEBP, REENCODE_QUALITY)
    return encode(image, OutputFormat.PNG)


def _invalid(
    field: str, message: str, *, rule: Rule = Rule.FORMAT, limit: float | None = None
) -> InvalidRequest:
    problem = Problem(field=field, rule=rule, message=message, limit=limit)
    if rule is Rule.FORMAT:
        problem = replace(problem, expected="image")
    return InvalidRequest.of([problem])
