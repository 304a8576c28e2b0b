"""What the codec makes of good pictures, and what it says about bad ones."""

import io
import struct
from collections.abc import Callable

import pytest
from PIL import Image, ImageCms

from fluxserve.core.request import OutputFormat
from fluxserve.images import codec, containers
from fluxserve.images.pixels import (
    convert,
    fit,
    mask_from_alpha,
    mask_from_black,
    mask_from_white,
    resize,
    shrink,
)
from tests.images.material import BLUE, FORMS, GREEN, GREY, RED, exif, file_of, quadrants

# Where the four colours must end up is the same for all eight: that is what upright means.
CORNERS = {(0.25, 0.25): RED, (0.75, 0.25): GREEN, (0.25, 0.75): BLUE, (0.75, 0.75): GREY}
# How a camera would have stored the upright picture, by orientation.
STORED: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


def assert_same_colours(image: Image.Image, tolerance: int = 12) -> None:
    for (x, y), colour in CORNERS.items():
        seen = image.convert("RGB").getpixel((int(x * image.width), int(y * image.height)))
        assert isinstance(seen, tuple)
        assert all(abs(a - b) <= tolerance for a, b in zip(seen, colour, strict=True)), (x, y)


@pytest.mark.parametrize("form", FORMS)
def test_every_format_is_read_and_told_by_its_bytes(form: str) -> None:
    data = file_of(quadrants(), form)
    assert containers.sniff(data) == f"image/{form.lower()}"
    image = codec.decode(data)
    assert image.size == (48, 32)
    assert image.mode == "RGB"
    assert_same_colours(image)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_brought_upright(form: str, orientation: int) -> None:
    data = file_of(STORED[orientation](quadrants()), form, exif=exif(orientation), quality=95)
    assert_same_colours(codec.decode(data))
    prepared = codec.prepare(data)
    assert (prepared.width, prepared.height) == (48, 32)
    assert prepared.mime == f"image/{form.lower()}"
    again = Image.open(io.BytesIO(prepared.data))
    assert "exif" not in again.info
    assert_same_colours(again)


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_read_in_both_byte_orders(order: str) -> None:
    data = file_of(quadrants(), "JPEG", exif=exif(6, order))
    assert containers.read(data).orientation == 6


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 20,
        exif(0),
        exif(9),
        exif(6)[:-10],
    ],
)
def test_damaged_exif_is_ignored_without_a_warning(block: bytes) -> None:
    data = file_of(quadrants(), "JPEG", exif=block)
    assert_same_colours(codec.decode(data))
    assert codec.prepare(data).width == 48


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_metadata_is_left_out_and_the_pixels_stay_the_same(form: str) -> None:
    secret = b"Exif\0\0" + b"home: 52.52 N 13.40 E"
    options: dict[str, object] = {"exif": secret, "xmp": b"<x>garden</x>"}
    if form == "JPEG":
        options["comment"] = b"my house"
    plain = file_of(quadrants(), form, quality=90)
    data = file_of(quadrants(), form, quality=90, **options) + b"a video after the end"
    assert b"52.52" in data
    prepared = codec.prepare(data)
    for trace in (b"52.52", b"garden", b"my house", b"a video"):
        assert trace not in prepared.data
    was, now = Image.open(io.BytesIO(plain)), Image.open(io.BytesIO(prepared.data))
    assert was.tobytes() == now.tobytes()


def test_a_picture_without_metadata_is_not_copied() -> None:
    data = file_of(quadrants(), "PNG")
    assert codec.prepare(data).data is data


@pytest.mark.parametrize("form", ["GIF", "BMP"])
def test_gif_and_bmp_become_png(form: str) -> None:
    prepared = codec.prepare(file_of(quadrants(), form))
    assert prepared.mime == "image/png"
    assert_same_colours(codec.decode(prepared.data))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_picture_the_first_frame_counts(form: str) -> None:
    other = Image.new("RGB", (48, 32), (255, 255, 255))
    data = file_of(quadrants(), form, save_all=True, append_images=[other], quality=95)
    assert_same_colours(codec.decode(data), tolerance=24)
    prepared = codec.prepare(data)
    assert getattr(Image.open(io.BytesIO(prepared.data)), "n_frames", 1) == 1
    assert_same_colours(codec.decode(prepared.data), tolerance=24)


MODES = {
    "1": (255, 255, 255),
    "L": (200, 200, 200),
    "P": (200, 100, 50),
    "RGB": (200, 100, 50),
    "I;16": (0x12, 0x12, 0x12),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    match mode:
        case "I;16":
            image = Image.new("I;16", (4, 4), 0x1234)
        case "1":
            image = Image.new("1", (4, 4), 1)
        case "L":
            image = Image.new("L", (4, 4), 200)
        case _:
            image = Image.new("RGB", (4, 4), (200, 100, 50))
            image = image.quantize(4) if mode == "P" else image
    assert codec.decode(file_of(image, "PNG")).getpixel((1, 1)) == MODES[mode]


def test_transparency_is_laid_over_white_or_kept_as_asked() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    data = file_of(image, "PNG")
    assert codec.decode(data).getpixel((1, 0)) == (255, 255, 255)
    assert codec.decode(data, "RGBA").getpixel((1, 0)) == (0, 0, 0, 0)
    assert codec.decode(data, "L").getpixel((1, 0)) == 255
    grey = Image.new("LA", (1, 1), (10, 0))
    assert codec.decode(file_of(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_becomes_rgb() -> None:
    cyan = file_of(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    red, _, blue = codec.decode(cyan).getpixel((8, 8))  # type: ignore[misc]
    assert red < 20
    assert blue > 200


def lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    data = file_of(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", icc_profile=lab_profile())
    assert codec.decode(data).getpixel((0, 0)) == (1, 2, 3)


def test_a_broken_profile_is_ignored() -> None:
    data = file_of(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", icc_profile=b"no profile")
    assert codec.decode(data).getpixel((0, 0)) == (1, 2, 3)


def swapped_profile() -> bytes:
    """A profile whose red and green primaries are exchanged, named so that it is not sRGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    places = {}
    for entry in range(132, 132 + 12 * count, 12):
        tag, offset, size = struct.unpack_from(">4sII", profile, entry)
        places[tag] = (entry, offset, size)
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    struct.pack_into(">II", profile, red[0] + 4, green[1], green[2])
    struct.pack_into(">II", profile, green[0] + 4, red[1], red[2])
    _, offset, size = places[b"desc"]
    name = bytes(profile[offset : offset + size])
    changed = name.replace(b"s\0R\0G\0B", b"t\0e\0s\0t").replace(b"sRGB", b"test")
    profile[offset : offset + size] = changed
    return bytes(profile)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_colour_profile_is_applied(form: str) -> None:
    image = Image.new("RGB", (16, 16), (250, 10, 10))
    data = file_of(image, form, icc_profile=swapped_profile(), quality=95)
    red, green, _ = codec.decode(data).getpixel((8, 8))  # type: ignore[misc]
    assert red < 60
    assert green > 200
    translucent = image.convert("RGBA")
    translucent.putalpha(100)
    if form != "JPEG":
        data = file_of(translucent, form, icc_profile=swapped_profile(), lossless=True)
        pixel = codec.decode(data, "RGBA").getpixel((8, 8))
        assert isinstance(pixel, tuple)
        assert pixel[1] > 200
        assert pixel[3] == 100


def test_the_transparency_of_numbered_colours_survives_a_colour_profile() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 10, 10])
    options = {"transparency": b"\xff\x64", "icc_profile": swapped_profile()}
    pixel = codec.decode(file_of(image, "PNG", **options), "RGBA").getpixel((1, 1))
    assert isinstance(pixel, tuple)
    assert pixel[1] > 200
    assert pixel[3] == 0x64


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (7, 100), (100, 7), (8, 1)])
def test_a_picture_of_few_pixels_is_a_picture(form: str, size: tuple[int, int]) -> None:
    kept = codec.prepare(file_of(Image.new("RGB", size, RED), form), field="image")
    assert (kept.width, kept.height) == size
    assert codec.decode(kept.data).size == size


@pytest.mark.parametrize("form", list(OutputFormat))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "LA"])
def test_every_mode_is_written_in_every_format(form: OutputFormat, mode: str) -> None:
    image = quadrants().convert("RGB").convert(mode)
    if mode == "CMYK" and form is not OutputFormat.JPEG:
        image = image.convert("RGB")
    encoded = codec.encode(image, form)
    assert (encoded.mime, encoded.width, encoded.height) == (form.mime, 48, 32)
    assert containers.sniff(encoded.data) == form.mime


@pytest.mark.parametrize("form", [OutputFormat.JPEG, OutputFormat.WEBP])
def test_quality_runs_from_0_to_100(form: OutputFormat) -> None:
    noise = Image.effect_noise((128, 128), 60).convert("RGB")
    sizes = [len(codec.encode(noise, form, quality).data) for quality in (0, 50, 89, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 4


def test_a_png_comes_back_to_the_bit() -> None:
    noise = Image.effect_noise((64, 48), 60).convert("RGB")
    noise.info["icc_profile"] = swapped_profile()
    encoded = codec.encode(noise, OutputFormat.PNG)
    assert codec.decode(encoded.data).tobytes() == noise.tobytes()


def test_fit_fills_the_frame_and_cuts_both_sides_equally() -> None:
    image = Image.new("RGB", (30, 10), GREY)
    image.paste(RED, (0, 0, 10, 10))
    image.paste(BLUE, (20, 0, 30, 10))
    assert {color for _, color in fit(image, 10, 10).getcolors() or ()} == {GREY}
    tall = fit(image, 10, 40)
    assert tall.size == (10, 40)
    assert fit(image, 30, 10) is image
    assert resize(image, 30, 10) is image
    assert resize(image, 7, 9).size == (7, 9)


def test_shrink_keeps_proportions_and_small_pictures() -> None:
    image = Image.new("RGB", (400, 100))
    assert shrink(image, 200).size == (200, 50)
    assert shrink(image, 400) is image
    assert shrink(Image.new("RGB", (1000, 1)), 10).size == (10, 1)


def test_masks_say_repaint_in_white_whatever_the_caller_says() -> None:
    hole = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    hole.putpixel((1, 0), (255, 255, 255, 0))
    assert list(mask_from_alpha(hole).tobytes()) == [0, 255]
    drawn = Image.new("RGB", (2, 1), (0, 0, 0))
    drawn.putpixel((1, 0), (255, 255, 255))
    assert list(mask_from_white(drawn).tobytes()) == [0, 255]
    assert list(mask_from_black(drawn).tobytes()) == [255, 0]


def test_a_profile_that_is_srgb_already_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    for mode in ("RGB", "P", "L", "LA"):
        data = file_of(image.convert(mode), "PNG", icc_profile=srgb)
        assert codec.decode(data).tobytes() == image.convert(mode).convert("RGB").tobytes()


def test_a_comment_before_the_first_frame_of_a_gif_is_skipped() -> None:
    data = file_of(quadrants(), "GIF", comment=b"hello " * 100)
    assert_same_colours(codec.decode(data))


def test_sixteen_bit_grey_keeps_its_upper_byte_whatever_the_order() -> None:
    big = Image.frombytes("I;16B", (2, 1), bytes((0x12, 0x34, 0xFF, 0x00)))
    big.info["icc_profile"] = b"no profile"
    assert convert(big, "L").tobytes() == bytes((0x12, 0xFF))
