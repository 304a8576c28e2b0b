"""Pure operations on pixels: modes, colours, sizes, masks.

A mask is a picture of mode "L": 255 (white) is repainted, 0 (black) is kept.
"""

import io
from typing import Literal

from PIL import Image, ImageChops, ImageCms

Mode = Literal["RGB", "RGBA", "L"]

# EXIF orientation -> what brings the stored pixels upright (CIPA DC-008, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Apply an EXIF orientation, 1 .. 8; width and height swap for 5 .. 8."""
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def convert(image: Image.Image, mode: Mode) -> Image.Image:
    """Any decoded picture as RGB, RGBA or L (8 bits each), in sRGB.

    Where alpha has no place in `mode`, the picture is laid over white.
    """
    image = _to_srgb(_to_eight_bits(image))
    if image.mode == mode:
        return image
    if mode == "RGBA":
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = flatten(image)
    return image.convert(mode)


def flatten(image: Image.Image) -> Image.Image:
    """Lay a picture with transparency over white: RGB."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale to exactly (width, height) px, proportions as they come."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Fill (width, height) px: scale evenly, cut what sticks out equally on both sides."""
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    cut_width, cut_height = width / scale, height / scale
    left, top = (image.width - cut_width) / 2, (image.height - cut_height) / 2
    box = (left, top, left + cut_width, top + cut_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def shrink(image: Image.Image, side_max: int) -> Image.Image:
    """No side longer than `side_max` px, proportions kept; small pictures stay as they are."""
    longest = max(image.size)
    if longest <= side_max:
        return image
    width, height = (max(1, round(side * side_max / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def mask_from_alpha(image: Image.Image) -> Image.Image:
    """Where the picture is transparent, repaint: alpha 0 becomes 255, alpha 255 becomes 0."""
    return ImageChops.invert(image.convert("RGBA").getchannel("A"))


def mask_from_white(image: Image.Image) -> Image.Image:
    """White is repainted already: the brightness is the mask."""
    return convert(image, "L")


def mask_from_black(image: Image.Image) -> Image.Image:
    """For callers whose black is repainted and white is kept."""
    return ImageChops.invert(convert(image, "L"))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, by its upper byte: `convert` would clip it at 255 instead."""
    if image.mode == "I;16":
        eight = Image.frombytes("L", image.size, image.tobytes()[1::2])
    elif image.mode == "I;16B":
        eight = Image.frombytes("L", image.size, image.tobytes()[::2])
    else:
        return image
    if "icc_profile" in image.info:
        eight.info["icc_profile"] = image.info["icc_profile"]
    return eight


def _to_srgb(image: Image.Image) -> Image.Image:
    """Through the colour profile that the file carries, if it carries a usable one."""
    profile_bytes = image.info.get("icc_profile")
    if not isinstance(profile_bytes, bytes):
        return image
    alpha = None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        image = rgba if image.mode == "P" else image  # its transparency has no place in RGB
    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        # Most profiles in the wild are sRGB under some name: nothing to compute.
        if "srgb" not in ImageCms.getProfileDescription(profile).lower():
            srgb = ImageCms.createProfile("sRGB")
            changed = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
            image = image if changed is None else changed
    except (ImageCms.PyCMSError, OSError):
        # A profile that is broken or of another colour space: the numbers are taken for sRGB.
        pass
    if alpha is not None:
        image = image.convert("RGB")
        image.putalpha(alpha)
    return image
