"""LoRAs of requests: read once, kept on the device, the one unused for longest let go first."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from fluxserve.flux import lora
from fluxserve.flux.cache import Cache, CacheStats
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.lora import Lora
from fluxserve.flux.prepare import Adapter
from fluxserve.flux.spec import TransformerSpec

SCALE_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """A LoRA as one request uses it."""

    adapter: Adapter
    text_layers: int  # layers of text encoders in the file, which are not applied


class Adapters:
    """A cache of LoRAs, bounded in bytes. Requests hold what they use, so letting go is safe."""

    def __init__(
        self, spec: TransformerSpec, device: torch.device, dtype: torch.dtype, *, bytes_max: int
    ) -> None:
        self._spec, self._device, self._dtype = spec, device, dtype
        self._kept: Cache[Lora] = Cache(bytes_max, lambda kept: kept.size_bytes)

    @property
    def stats(self) -> CacheStats:
        return self._kept.stats

    def clear(self) -> None:
        self._kept.clear()

    def get(self, source: Path | bytes, scale: float = 1.0) -> Found:
        """The LoRA in `source` at a scale; WeightsError says what is wrong with it.

        A file is known again by its path, length and time of change; bytes by their hash.
        """
        if not math.isfinite(scale) or abs(scale) > SCALE_MAX:
            raise WeightsError(f"LoRA scale: from -{SCALE_MAX:g} to {SCALE_MAX:g}, not {scale}")
        kept = self._kept.get(
            _key(source), lambda: lora.read(source, self._spec).to(self._device, self._dtype)
        )
        return Found(kept.scaled(scale), kept.text_layers)


def _key(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        found = source.stat()
    except OSError:
        raise WeightsError(f"LoRA: {source.name} is not there") from None
    return f"{source.resolve()} {found.st_size} {found.st_mtime_ns}"
