"""Masks as callers send them, made into ours: white is repainted, black is kept."""

from fluxserve.core.request import OutputFormat
from fluxserve.images.codec import PIXELS_MAX, decode, encode
from fluxserve.images.pixels import mask_from_alpha, mask_from_white

OPAQUE = (255, 255)


def repaint_mask(data: bytes, field: str, *, pixels_max: int = PIXELS_MAX) -> bytes:
    """A PNG of mode L from a mask file: what is transparent becomes white.

    Where nothing is transparent, the picture itself is the mask, and its white is repainted.
    InvalidRequest naming `field`. Pure and synchronous: call it in a thread.
    """
    image = decode(data, "RGBA", field=field, pixels_max=pixels_max)
    has_holes = image.getchannel("A").getextrema() != OPAQUE
    mask = mask_from_alpha(image) if has_holes else mask_from_white(image)
    return encode(mask, OutputFormat.PNG).data
