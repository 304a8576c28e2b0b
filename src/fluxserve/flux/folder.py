"""Look at a model folder in diffusers' layout: is all of it there, and what does it describe?

Imports no torch, so that a server can refuse a folder before anything is loaded. Everything that
can be wrong is said in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

from fluxserve.flux.spec import (
    FLUX_FACTORS,
    KONTEXT_SIZES,
    AutoencoderSpec,
    ClipSpec,
    Guidance,
    LinearPreview,
    ModelSpec,
    ScheduleSpec,
    Sidecar,
    T5Spec,
    TransformerSpec,
)


class Part(StrEnum):
    """The folders of which a model folder is made."""

    SCHEDULER = "scheduler"
    TEXT_ENCODER = "text_encoder"
    TEXT_ENCODER_2 = "text_encoder_2"
    TOKENIZER = "tokenizer"
    TOKENIZER_2 = "tokenizer_2"
    TRANSFORMER = "transformer"
    VAE = "vae"


PARTS: tuple[str, ...] = tuple(Part)
CLASSES = {
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}
TEXT_TOKENS = 512  # FLUX.1 dev and Kontext; schnell was trained with 256
TEXT_TOKENS_SCHNELL = 256


class WeightsError(Exception):
    """A model folder cannot be used; the message says why and what to do."""


def embedded_folder() -> Path:
    """Where the small model of the package lies."""
    return Path(str(resources.files("fluxserve.flux.embedded") / "checkpoint"))


def inspect(folder: Path) -> ModelSpec:
    """Describe the model in `folder` from its configs, after checking that all of it is there."""
    if folder.is_file():
        raise WeightsError(
            f"{folder.name}: a file, not a model folder; `fluxserve models install` makes it part"
            " of one"
        )
    if not folder.is_dir():
        raise WeightsError(f"{folder.name}: no such model folder; run `fluxserve models pull`")
    index = _json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in ("FluxPipeline", "FluxKontextPipeline"):
        raise WeightsError(
            f"model_index.json: a FluxPipeline or a FluxKontextPipeline is needed, not {kind}"
        )
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise WeightsError(f"{folder.name}: {', '.join(missing)} missing; download them as well")
    configs = {part: _config(folder, part) for part in PARTS if not part.startswith("tokenizer")}
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        weight_files(folder / part)
    spec = _spec(folder, configs, edits=kind == "FluxKontextPipeline")
    channels = 4 * spec.autoencoder.latent_channels
    if spec.transformer.in_channels != channels:
        raise WeightsError(
            f"transformer: takes {spec.transformer.in_channels} channels, this VAE makes"
            f" {channels}; Fill, Depth, Canny and Redux models are not supported"
        )
    if sum(spec.transformer.axes_dims_rope) != spec.transformer.attention_head_dim:
        raise WeightsError("transformer/config.json: axes_dims_rope must add up to the head size")
    return spec


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise WeightsError(f"{path.parent.name}/{path.name}: missing; download it") from None
    except ValueError:
        raise WeightsError(f"{path.parent.name}/{path.name}: not JSON; download it again") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path.parent.name}/{path.name}: a JSON object is needed")
    return value


def _config(folder: Path, part: str) -> Mapping[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    config = _json(folder / part / name)
    kind = config.get("_class_name")
    if part in CLASSES and kind != CLASSES[part]:
        raise WeightsError(f"{part}/{name}: {CLASSES[part]} is needed, not {kind}")
    return config


def _spec(folder: Path, configs: Mapping[str, Mapping[str, Any]], *, edits: bool) -> ModelSpec:
    try:
        transformer = TransformerSpec.from_config(configs["transformer"])
        schedule = ScheduleSpec.from_config(configs["scheduler"])
        schnell = not transformer.guidance_embeds
        spec = ModelSpec(
            name=folder.name,
            transformer=transformer,
            autoencoder=AutoencoderSpec.from_config(configs["vae"]),
            clip=ClipSpec.from_config(configs["text_encoder"]),
            t5=T5Spec.from_config(configs["text_encoder_2"]),
            schedule=schedule,
            guidance=Guidance.NONE if schnell else Guidance.EMBEDDED,
            text_tokens=TEXT_TOKENS_SCHNELL if schnell else TEXT_TOKENS,
            edits=edits,
            reference_sizes=KONTEXT_SIZES if edits else (),
            num_steps=4 if schnell else 28,
            guidance_scale=0.0 if schnell else 3.5,
            guidance_scale_edit=0.0 if schnell else 2.5,
        )
        spec = replace(spec, preview=_published_preview(spec.autoencoder))
        return _with_sidecar(spec, folder.parent / "defaults.json", folder.name)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder.name}: a config is incomplete: {error}") from error


def _published_preview(vae: AutoencoderSpec) -> LinearPreview | None:
    """The factors of the FLUX.1 VAE; of a VAE with other channels nothing is known."""
    return FLUX_FACTORS if len(FLUX_FACTORS.factors) == vae.latent_channels else None


def _with_sidecar(spec: ModelSpec, path: Path, checkpoint: str) -> ModelSpec:
    """A small model brings a file that says how it wants to be asked."""
    if not path.exists() or _json(path).get("checkpoint") != checkpoint:
        return spec
    said = Sidecar.read(path)
    channels = spec.autoencoder.latent_channels
    if said.preview and len(said.preview.factors) != channels:
        raise WeightsError(
            f"{path.name}: preview has factors for {len(said.preview.factors)} channels, this VAE"
            f" has {channels}"
        )
    return replace(
        spec,
        name=said.name,
        native_size=said.native_size,
        reference_sizes=(),
        text_tokens=said.text_tokens,
        num_steps=said.num_steps,
        guidance=said.guidance,
        guidance_scale=said.guidance_scale,
        guidance_scale_edit=said.guidance_scale_edit,
        preview=said.preview and _scaled(said.preview, spec.autoencoder),
    )


def _scaled(preview: LinearPreview, vae: AutoencoderSpec) -> LinearPreview:
    """The sidecar speaks of latents as the VAE makes them, before they are shifted and scaled."""
    red, green, blue = (
        preview.bias[at] + vae.shift_factor * sum(row[at] for row in preview.factors)
        for at in range(3)
    )
    scale = vae.scaling_factor
    factors = tuple((r / scale, g / scale, b / scale) for r, g, b in preview.factors)
    return LinearPreview(factors=factors, bias=(red, green, blue))


def weight_files(folder: Path) -> Sequence[Path]:
    """The safetensors files of a part, all of them there and complete."""
    found = sorted(folder.glob("*.safetensors.index.json"))
    if found:
        names = sorted(set(_json(found[0]).get("weight_map", {}).values()))
        paths = [folder / str(name) for name in names]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    gone = [path.name for path in paths if not path.exists()]
    if gone or not paths:
        what = ", ".join(gone) or "*.safetensors"
        raise WeightsError(f"{folder.name}: {what} missing; download it")
    for path in paths:
        _check_length(path)
    return paths


def _check_length(path: Path) -> None:
    """A safetensors file says in its header where its last tensor ends."""
    name = f"{path.parent.name}/{path.name}"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= 0 or length > size - 8:
            raise WeightsError(f"{name}: not a safetensors file, or cut short; download it again")
        try:
            header = json.loads(file.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise WeightsError(f"{name}: its header is damaged; download it again") from None
    if 8 + length + max(ends, default=0) != size:
        raise WeightsError(f"{name}: {size} bytes, only part of the file; download it again")
