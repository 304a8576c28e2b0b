"""A small picture of latents for the price of one small matrix product, to watch a request run."""

from __future__ import annotations

import torch
from torch import Tensor

from fluxserve.flux.spec import LinearPreview


def preview(latents: Tensor, how: LinearPreview) -> Tensor:
    """(C, H, W) -> (H, W, 3) uint8 on the CPU: one pixel a latent."""
    factors = torch.tensor(how.factors, dtype=torch.float32, device=latents.device)
    bias = torch.tensor(how.bias, dtype=torch.float32, device=latents.device)
    rgb = latents.float().permute(1, 2, 0) @ factors + bias
    return ((rgb / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()
