"""A checkpoint asked for pictures through diffusers' own pipelines, as its defaults.json says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from torch import Tensor

from training.scenes import Size

BATCH: Final = 16


class Painter:
    """The checkpoint in diffusers' own pipelines, asked as its defaults.json says."""

    def __init__(self, folder: Path) -> None:
        self.defaults = json.loads((folder / "defaults.json").read_text("utf-8"))
        side = int(self.defaults["native_size"])
        self.size: Size = (side, side)
        path = folder / str(self.defaults["checkpoint"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.kontext: Any = FluxKontextPipeline.from_pretrained(path, torch_dtype=torch.float32)
        self.flux: Any = FluxPipeline(
            scheduler=self.kontext.scheduler,
            vae=self.kontext.vae,
            text_encoder=self.kontext.text_encoder,
            tokenizer=self.kontext.tokenizer,
            text_encoder_2=self.kontext.text_encoder_2,
            tokenizer_2=self.kontext.tokenizer_2,
            transformer=self.kontext.transformer,
        )
        for pipeline in (self.kontext, self.flux):
            pipeline.to(self.device)
            pipeline.set_progress_bar_config(disable=True)

    def ask(self, pipeline: Any, prompts: Sequence[str], seed: int, **more: Any) -> Tensor:
        images = pipeline(
            prompt=list(prompts),
            negative_prompt=[self.defaults["negative_prompt"]] * len(prompts),
            height=self.size[0],
            width=self.size[1],
            num_inference_steps=self.defaults["steps"],
            max_sequence_length=self.defaults["max_sequence_length"],
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **more,
        ).images
        result: Tensor = images.float().cpu().clamp(0, 1)
        return result

    def text(self, prompts: Sequence[str], seed: int = 0) -> Tensor:
        """(B, 3, H, W) in 0 to 1."""
        scale = self.defaults["true_cfg_text"]
        parts = [
            self.ask(self.flux, prompts[i : i + BATCH], seed + i, true_cfg_scale=scale)
            for i in range(0, len(prompts), BATCH)
        ]
        return torch.cat(parts)

    def edit(self, images: Tensor, prompts: Sequence[str], seed: int = 0) -> Tensor:
        parts = [
            self.ask(
                self.kontext,
                prompts[i : i + BATCH],
                seed + i,
                image=images[i : i + BATCH],
                max_area=self.size[0] * self.size[1],
                _auto_resize=False,
                true_cfg_scale=self.defaults["true_cfg_edit"],
            )
            for i in range(0, len(prompts), BATCH)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def through_vae(self, images: Tensor) -> Tensor:
        """What the autoencoder alone makes of pictures: the best any edit can be."""
        vae = self.kontext.vae
        latents = vae.encode(images.to(self.device) * 2 - 1).latent_dist.mode()
        result: Tensor = (vae.decode(latents).sample / 2 + 0.5).cpu().clamp(0, 1)
        return result
