"""How a FLUX model is built and what it was trained to be asked: dimensions, sizes, text lengths.

The numbers of the published models are those of the config files that ship with their weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Self


class Guidance(StrEnum):
    """How a model is told to follow the prompt more closely."""

    EMBEDDED = "embedded"  # the scale is an input of the model (FLUX.1 dev, Kontext dev)
    TRUE_CFG = "true_cfg"  # a second row without the prompt, and a step away from it
    NONE = "none"  # the model was distilled without a scale (FLUX.1 schnell)


class _FromConfig:
    """Dataclasses that read the fields they know from a config file and ignore the rest."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Take the known fields of `config`; a field without a default raises KeyError."""
        values = {}
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name in config and config[field.name] is not None:
                value = config[field.name]
                values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSpec(_FromConfig):
    """Dimensions of the rectified-flow transformer, named as in its config file."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    @property
    def width(self) -> int:
        """Channels of a token inside the transformer."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderSpec(_FromConfig):
    """Dimensions of the VAE, named as in its config file."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    in_channels: int = 3
    out_channels: int = 3
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def scale(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec(_FromConfig):
    """Dimensions of the CLIP text encoder, named as in its config file."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Spec(_FromConfig):
    """Dimensions of the T5 encoder, named as in its config file."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec(_FromConfig):
    """How noise levels are spaced, named as in the scheduler's config file."""

    use_dynamic_shifting: bool = True
    shift: float = 3.0
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    num_train_timesteps: int = 1000


# The sizes Kontext was trained on, (width, height) in px, all close to one megapixel.
KONTEXT_SIZES: tuple[tuple[int, int], ...] = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184),
    (944, 1104), (1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752),
    (1456, 720), (1504, 688), (1568, 672),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearPreview:
    """A picture without the VAE: rgb (-1 .. 1) of one latent = its channels @ factors + bias."""

    factors: tuple[tuple[float, float, float], ...]  # one row a latent channel
    bias: tuple[float, float, float]


# RGB of one latent of the FLUX.1 VAE, as the community's user interfaces have fitted it (public).
FLUX_FACTORS = LinearPreview(
    factors=(
        (-0.0346, 0.0244, 0.0681), (0.0034, 0.0210, 0.0687), (0.0275, -0.0668, -0.0433),
        (-0.0174, 0.0160, 0.0617), (0.0859, 0.0721, 0.0329), (0.0004, 0.0383, 0.0115),
        (0.0405, 0.0861, 0.0915), (-0.0236, -0.0185, -0.0259), (-0.0245, 0.0250, 0.1180),
        (0.1008, 0.0755, -0.0421), (-0.0515, 0.0201, 0.0011), (0.0428, -0.0012, -0.0036),
        (0.0817, 0.0765, 0.0749), (-0.1264, -0.0522, -0.1103), (-0.0280, -0.0881, -0.0499),
        (-0.1262, -0.0982, -0.0778),
    ),
    bias=(-0.0329, -0.0718, -0.0851),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model: its parts, and what it may be asked for."""

    name: str
    transformer: TransformerSpec
    autoencoder: AutoencoderSpec = AutoencoderSpec()
    clip: ClipSpec = ClipSpec()
    t5: T5Spec = T5Spec()
    schedule: ScheduleSpec = ScheduleSpec()
    guidance: Guidance
    text_tokens: int  # every prompt is padded or cut to this many T5 tokens, as in training
    edits: bool  # trained to read reference images
    reference_sizes: tuple[tuple[int, int], ...] = ()  # references are brought to the nearest one
    native_size: int | None = None  # px; a model that knows one square size only
    num_steps: int = 28
    guidance_scale: float = 3.5  # where a request says nothing
    guidance_scale_edit: float = 2.5
    preview: LinearPreview | None = None  # None: no previews

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that one token covers."""
        return 2 * self.autoencoder.scale

    def tokens(self, width: int, height: int) -> int:
        """Image tokens of a picture of width x height px."""
        return (width // self.pixels_per_token) * (height // self.pixels_per_token)


FLUX_DEV = ModelSpec(
    name="flux-dev",
    transformer=TransformerSpec(guidance_embeds=True),
    guidance=Guidance.EMBEDDED,
    text_tokens=512,
    edits=False,
)
FLUX_SCHNELL = ModelSpec(
    name="flux-schnell",
    transformer=TransformerSpec(guidance_embeds=False),
    schedule=ScheduleSpec(use_dynamic_shifting=False, shift=1.0),
    guidance=Guidance.NONE,
    text_tokens=256,
    edits=False,
    num_steps=4,
    guidance_scale=0.0,
    guidance_scale_edit=0.0,
)
FLUX_KONTEXT_DEV = ModelSpec(
    name="flux-kontext-dev",
    transformer=TransformerSpec(guidance_embeds=True),
    guidance=Guidance.EMBEDDED,
    text_tokens=512,
    edits=True,
    reference_sizes=KONTEXT_SIZES,
    guidance_scale=2.5,
)


def tiny(*, guidance: Guidance = Guidance.EMBEDDED, edits: bool = True) -> ModelSpec:
    """A spec small enough for tests: 2 + 2 blocks, 64 channels wide, latents an eighth in size."""
    return ModelSpec(
        name="tiny",
        transformer=TransformerSpec(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guidance is Guidance.EMBEDDED,
            axes_dims_rope=(4, 6, 6),
        ),
        autoencoder=AutoencoderSpec(
            block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4
        ),
        clip=ClipSpec(
            vocab_size=1000,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        t5=T5Spec(vocab_size=1000, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
        guidance=guidance,
        text_tokens=32,
        edits=edits,
        num_steps=4,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What a checkpoint says about itself in `defaults.json`, beyond what its configs can say."""

    name: str
    native_size: int
    text_tokens: int
    num_steps: int
    guidance: Guidance
    guidance_scale: float
    guidance_scale_edit: float
    preview: LinearPreview | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file; KeyError or ValueError where a field is missing or wrong."""
        said = json.loads(path.read_text(encoding="utf-8"))
        embedded = bool(said["guidance_embeds"])
        preview = said.get("preview")
        return cls(
            name=str(said["name"]),
            native_size=int(said["native_size"]),
            text_tokens=int(said["max_sequence_length"]),
            num_steps=int(said["steps"]),
            guidance=Guidance.EMBEDDED if embedded else Guidance.TRUE_CFG,
            guidance_scale=float(said["guidance_text" if embedded else "true_cfg_text"]),
            guidance_scale_edit=float(said["guidance_edit" if embedded else "true_cfg_edit"]),
            preview=preview
            and LinearPreview(
                factors=tuple((float(r), float(g), float(b)) for r, g, b in preview["factors"]),
                bias=(
                    float(preview["bias"][0]),
                    float(preview["bias"][1]),
                    float(preview["bias"][2]),
                ),
            ),
        )
