"""Small random model folders of every family, in diffusers' layout, for tests."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

KINDS = ("dev", "schnell", "kontext")
SIZES: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "axes_dims_rope": (4, 6, 6),
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
SCHEDULES = {
    "schnell": {"shift": 1.0, "use_dynamic_shifting": False},
    "dev": {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
}


def make_folder(package: Path, folder: Path, kind: str, *, latents: int = 16) -> Path:
    """A model of a family: the text encoders of the package, the rest random and small."""
    torch.manual_seed(5)
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(package / part, folder / part)
    text, pooled = (
        json.loads((package / part / "config.json").read_text())[name]
        for part, name in (("text_encoder_2", "d_model"), ("text_encoder", "hidden_size"))
    )
    transformer = FluxTransformer2DModel(
        **SIZES,
        in_channels=4 * latents,
        guidance_embeds=kind != "schnell",
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
    )
    transformer.save_pretrained(folder / "transformer")
    AutoencoderKL(**VAE, latent_channels=latents).save_pretrained(folder / "vae")
    schedule = SCHEDULES["schnell" if kind == "schnell" else "dev"]
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", **schedule}
    write(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = json.loads((package / "model_index.json").read_text())
    index["_class_name"] = "FluxKontextPipeline" if kind == "kontext" else "FluxPipeline"
    write(folder / "model_index.json", index)
    return folder


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
