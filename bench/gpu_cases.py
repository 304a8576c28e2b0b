"""What gpu.py measures: FLUX.1 as published, and a toy to test the plumbing."""

from dataclasses import dataclass

import torch

from fluxserve.flux.spec import TransformerSpec


@dataclass(frozen=True, slots=True)
class Case:
    """One request: tokens as (height, width)."""

    name: str
    picture: tuple[int, int]
    reference: tuple[int, int] | None
    text: int

    @property
    def rows(self) -> int:
        ref = self.reference or (0, 0)
        return self.picture[0] * self.picture[1] + ref[0] * ref[1] + self.text


@dataclass(frozen=True, slots=True)
class Scale:
    """What is measured: the real thing, or a toy to test the plumbing."""

    spec: TransformerSpec
    cases: tuple[Case, ...]
    repeats: int
    dtype: torch.dtype = torch.bfloat16


REAL = Scale(
    spec=TransformerSpec(guidance_embeds=True),
    cases=(
        Case("512", (32, 32), None, 512),
        Case("1024", (64, 64), None, 512),
        Case("edit 1 MP", (64, 64), (64, 64), 512),
    ),
    repeats=7,
)
TOY = Scale(
    spec=TransformerSpec(
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        pooled_projection_dim=24,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    ),
    cases=(
        Case("512", (4, 4), None, 16),
        Case("1024", (8, 8), None, 16),
        Case("edit 1 MP", (8, 8), (8, 8), 16),
    ),
    repeats=2,
)
