"""What a row remembers of its references between steps: their keys and values in every block."""

from __future__ import annotations

from torch import Tensor

from fluxserve.flux.spec import TransformerSpec


class Memory:
    """Keys, turned by their places, and values of one row's reference tokens, by block."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(self, block: str, key: Tensor, value: Tensor) -> None:
        """Copy (R, heads, head_dim) each into the place they have had from the first time on."""
        if block not in self._kept:
            self._kept[block] = (key.clone(), value.clone())
            return
        for there, new in zip(self._kept[block], (key, value), strict=True):
            there.copy_(new)

    def of(self, block: str) -> tuple[Tensor, Tensor]:
        """What was kept; KeyError where nothing was."""
        return self._kept[block]


def memory_bytes(spec: TransformerSpec, tokens: int, item_bytes: int) -> int:
    """What is remembered of so many reference tokens, in numbers of so many bytes: FLUX.1 in
    bfloat16 takes 700 kB for each, 2.9 GB for a picture of one megapixel.
    """
    return 2 * (spec.num_layers + spec.num_single_layers) * tokens * spec.width * item_bytes
