"""Pictures that a fake provider hands out: real files, cheap to make, told apart by their seed."""

import io
from functools import lru_cache

from PIL import Image


@lru_cache(maxsize=64)
def picture(seed: int, width: int, height: int, form: str) -> bytes:
    """One encoded picture; `form` is png, jpeg or webp; the colour follows the seed."""
    colour = (seed * 37 % 256, seed * 91 % 256, seed * 151 % 256)
    gradient = Image.linear_gradient("L").resize((width, height))
    plain = Image.new("RGB", (width, height), colour)
    shaded = Image.composite(plain, Image.new("RGB", (width, height), (255, 255, 255)), gradient)
    out = io.BytesIO()
    shaded.save(out, form.upper(), quality=90)
    return out.getvalue()
