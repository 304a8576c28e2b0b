"""From an order to samples, and from a sample to a finished picture: encode, decode, glimpse.

order, files ── encode ──> Condition ── begin ──> Sample .. steps .. ── decode ──> EncodedImage
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fluxserve.core.errors import EngineError, ErrorCode
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import OutputFormat, Task
from fluxserve.engines.local.adapters import Adapters
from fluxserve.engines.local.plan import Plan
from fluxserve.engines.local.turns import Turns
from fluxserve.engines.local.wire import Order
from fluxserve.flux import packing, sample
from fluxserve.flux.autoencoder import from_pixels
from fluxserve.flux.cache import Cache, CacheStats
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.prepare import Adapter
from fluxserve.flux.sample import Condition, Repaint, Sample
from fluxserve.flux.weights import Model
from fluxserve.images.codec import decode as decode_file
from fluxserve.images.codec import encode as encode_file
from fluxserve.images.pixels import Mode, resize

LORA_CACHE_BYTES = 2 * 2**30
REFERENCE_CACHE_BYTES = 256 * 2**20  # 500 references of 1 MP in bfloat16
PREVIEW_SIDE = 256  # px, the longer one
PREVIEW_QUALITY = 70

Note = Callable[[str], None]


class Pipeline:
    """The work around the steps, for one loaded model. Safe to use from several threads.

    `turns` is held while the device works, and not while files are read or written.
    """

    def __init__(self, model: Model, turns: Turns) -> None:
        self.model = model
        self._turns = turns
        self._adapters = Adapters(
            model.spec.transformer, model.device, model.dtype, bytes_max=LORA_CACHE_BYTES
        )
        self._references: Cache[Tensor] = Cache(REFERENCE_CACHE_BYTES, lambda x: x.nbytes)

    @property
    def cache_stats(self) -> dict[str, CacheStats]:
        return {
            "prompts": self.model.text.cache_stats,
            "references": self._references.stats,
            "rotations": self.model.rotations.stats,
        }

    def forget(self) -> None:
        """Let go of all that is only kept in case it is asked for again."""
        self._adapters.clear()
        self._references.clear()
        self.model.text.forget()
        self.model.rotations.clear()

    # --- encode -----------------------------------------------------------------------------------

    def encode(self, order: Order, files: Sequence[bytes], plan: Plan, note: Note) -> Condition:
        """Everything that the samples of an order share.

        InvalidRequest names a broken picture, EngineError a LoRA that does not fit.
        """
        pictures = files[: len(order.sizes)]
        adapters = [self._adapter(path, scale, note) for path, scale in order.loras]
        if Task(order.task) in (Task.FILL, Task.EXPAND):
            whole, mask = canvas(order, files)
            references = [self._latents(whole, size) for size in plan.references]
            repaint = self._repaint(plan, whole, mask)
        else:
            references = [
                self._reference(data, size)
                for data, size in zip(pictures, plan.references, strict=False)
            ]
            repaint = None
            if plan.first_step:
                repaint = self._repaint(plan, _pixels(pictures[0]), None)
        with self._turns:
            return sample.condition(
                self.model,
                prompt=order.prompt,
                negative_prompt=order.negative_prompt,
                width=plan.width,
                height=plan.height,
                num_steps=plan.num_steps,
                guidance=plan.guidance,
                references=references,
                adapters=adapters,
                repaint=repaint,
                first_step=plan.first_step,
                approximations=plan.approximations,
            )

    def _adapter(self, path: str, scale: float, note: Note) -> Adapter:
        try:
            found = self._adapters.get(Path(path), scale)
        except WeightsError as error:
            unfit = EngineError(f"loras: {error}", field="loras")
            unfit.code = ErrorCode.INVALID_REQUEST  # whoever asked named a wrong one
            raise unfit from error
        if found.text_layers:
            note(f"The LoRA also changes {found.text_layers} layers of text encoders; not applied")
        return found.adapter

    def begin(self, condition: Condition, seed: int) -> Sample:
        """A picture before its first step, from its seed."""
        return sample.begin(self.model, condition, seed)

    def _reference(self, data: bytes, size: tuple[int, int]) -> Tensor:
        """Latents of an input picture, remembered by its bytes and the size it is brought to."""
        key = (hashlib.sha256(data).digest(), size)
        return self._references.get(key, lambda: self._latents(_pixels(data), size))

    def _latents(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        pixels = _tensor(resize(image, *size), 3)
        with self._turns:
            return self.model.autoencoder.encode(from_pixels(pixels))

    def _repaint(self, plan: Plan, image: Image.Image, mask: Image.Image | None) -> Repaint:
        latents = self._latents(image, (plan.width, plan.height))
        if mask is None:
            return Repaint(packing.pack(latents), None)
        small = resize(mask, latents.shape[2], latents.shape[1])
        part = _tensor(small, 1)[..., 0].to(latents) / 255
        return Repaint(packing.pack(latents), packing.pack(part.expand(latents.shape)))

    # --- decode -----------------------------------------------------------------------------------

    def decode(
        self, order: Order, files: Sequence[bytes], plan: Plan, made: Sample
    ) -> EncodedImage:
        """The finished picture, in the size and format asked for."""
        with self._turns:
            pixels = sample.finish(self.model, made)
        image = _brought(_image(pixels), plan, (plan.out_width, plan.out_height))
        if made.condition.repaint is not None and made.condition.repaint.mask is not None:
            whole, mask = canvas(order, files)
            image = Image.composite(image, whole, mask)
        return encode_file(image, OutputFormat(order.output_format), order.output_quality)

    def glimpse(self, made: Sample) -> Tensor | None:
        """Pixels of the picture by now, (H, W, 3) uint8, one for each latent."""
        return sample.glimpse(self.model, made)


def encode_glimpse(pixels: Tensor, plan: Plan) -> EncodedImage:
    """A preview as a small JPEG, in the proportions of the finished picture."""
    scale = PREVIEW_SIDE / max(plan.out_width, plan.out_height)
    size = max(1, round(plan.out_width * scale)), max(1, round(plan.out_height * scale))
    return encode_file(_brought(_image(pixels), plan, size), OutputFormat.JPEG, PREVIEW_QUALITY)


# --- pictures -------------------------------------------------------------------------------------


def _brought(image: Image.Image, plan: Plan, size: tuple[int, int]) -> Image.Image:
    """What the model made, in (width, height) of the proportions that the plan asks for."""
    return resize(spread(image, *size) if plan.is_spread else image, *size)


def canvas(order: Order, files: Sequence[bytes]) -> tuple[Image.Image, Image.Image]:
    """The picture to repaint in full size, and its mask: white is repainted."""
    image = _pixels(files[0])
    if Task(order.task) is Task.FILL:
        mask = _pixels(files[len(order.sizes)], "L", field="mask")
        return image, resize(mask, *image.size)
    assert order.margins is not None
    top, bottom, left, right = order.margins
    size = (image.width + left + right, image.height + top + bottom)
    mask = Image.new("L", size, 255)
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return _extended(image, size, (left, top)), mask


def spread(image: Image.Image, width: int, height: int) -> Image.Image:
    """Continue the borders until the proportions are those of width x height, so nothing is cut."""
    ratio = width / height
    if image.width < image.height * ratio:
        size = (round(image.height * ratio), image.height)
    else:
        size = (image.width, round(image.width / ratio))
    place = ((size[0] - image.width) // 2, (size[1] - image.height) // 2)
    return _extended(image, size, place) if size != image.size else image


def _extended(image: Image.Image, size: tuple[int, int], place: tuple[int, int]) -> Image.Image:
    """`image` at `place` on a larger canvas, its outermost pixels drawn out to the edges."""
    left, top = place
    right, bottom = left + image.width, top + image.height
    wide = Image.new(image.mode, size)
    for x0, x1, column in ((0, left, 0), (right, size[0], image.width - 1)):
        if x1 > x0:
            strip = image.crop((column, 0, column + 1, image.height))
            wide.paste(strip.resize((x1 - x0, image.height)), (x0, top))
    wide.paste(image, place)
    for y0, y1, row in ((0, top, top), (bottom, size[1], bottom - 1)):
        if y1 > y0:
            strip = wide.crop((0, row, size[0], row + 1))
            wide.paste(strip.resize((size[0], y1 - y0)), (0, y0))
    return wide


def _pixels(data: bytes, mode: Mode = "RGB", field: str = "images") -> Image.Image:
    """An input picture. The server has judged its size: how much it lets in is a setting there."""
    return decode_file(data, mode, field=field, pixels_max=None)


def _tensor(image: Image.Image, channels: int) -> Tensor:
    """(H, W, channels) uint8 on the CPU."""
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return raw.reshape(image.height, image.width, channels)


def _image(pixels: Tensor) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.frombytes("RGB", (width, height), pixels.contiguous().numpy().tobytes())
