"""Pixels to latents and back: the VAE, its layers named as in its published weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fluxserve.flux.spec import AutoencoderSpec

EPS = 1e-6


class _Resnet(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.conv_shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        short = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return short + y  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """One head over all places."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPS)
        for name in ("to_q", "to_k", "to_v"):
            self.add_module(name, nn.Linear(channels, channels))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        places = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (self.get_submodule(name)(places)[:, None] for name in ("to_q", "to_k", "to_v"))
        mixed = functional.scaled_dot_product_attention(q, k, v)[:, 0]
        y: Tensor = self.to_out[0](mixed).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + y


class _Down(nn.Module):
    """Half the size: the last row and column are padded, as in training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return y


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class _Stage(nn.Module):
    def __init__(self, resnets: list[_Resnet], sampler: str, module: nn.Module | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.sampler = sampler if module is not None else None
        if module is not None:
            self.add_module(sampler, nn.ModuleList([module]))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        if self.sampler is not None:
            x = self.get_submodule(f"{self.sampler}.0")(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, spec: AutoencoderSpec) -> None:
        super().__init__()
        groups = spec.norm_num_groups
        self.resnets = nn.ModuleList(_Resnet(channels, channels, groups) for _ in range(2))
        has = spec.mid_block_add_attention
        self.attentions = nn.ModuleList([_Attention(channels, groups)] if has else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        y: Tensor = self.resnets[1](x)
        return y


class _Encoder(nn.Module):
    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        widths = spec.block_out_channels
        self.conv_in = nn.Conv2d(spec.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for at, width in enumerate(widths):
            resnets = []
            for _ in range(spec.layers_per_block):
                resnets.append(_Resnet(before, width, spec.norm_num_groups))
                before = width
            down = _Down(width) if at < len(widths) - 1 else None
            self.down_blocks.append(_Stage(resnets, "downsamplers", down))
        self.mid_block = _Middle(widths[-1], spec)
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * spec.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        y: Tensor = self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))
        return y


class _Decoder(nn.Module):
    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        widths = spec.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(spec.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _Middle(widths[0], spec)
        self.up_blocks = nn.ModuleList()
        before = widths[0]
        for at, width in enumerate(widths):
            resnets = []
            for _ in range(spec.layers_per_block + 1):
                resnets.append(_Resnet(before, width, spec.norm_num_groups))
                before = width
            up = _Up(width) if at < len(widths) - 1 else None
            self.up_blocks.append(_Stage(resnets, "upsamplers", up))
        self.conv_norm_out = nn.GroupNorm(spec.norm_num_groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], spec.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for stage in self.up_blocks:
            x = stage(x)
        y: Tensor = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return y


class Autoencoder(nn.Module):
    """Pictures in -1 .. 1 and latents as the transformer sees them (shifted and scaled)."""

    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = spec.latent_channels
        self.encoder = _Encoder(spec)
        self.decoder = _Decoder(spec)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if spec.use_quant_conv else None
        self.post_quant_conv = (
            nn.Conv2d(channels, channels, 1) if spec.use_post_quant_conv else None
        )

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """(3, H, W) in -1 .. 1 -> (C, H / scale, W / scale): the most likely latents, no chance."""
        weight = self.encoder.conv_in.weight
        moments = self.encoder(pixels.to(weight.device, weight.dtype)[None])
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean: Tensor = moments[0, : self.spec.latent_channels]
        return (mean - self.spec.shift_factor) * self.spec.scaling_factor

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """(C, H, W) -> (3, H * scale, W * scale), about -1 .. 1, not clamped."""
        weight = self.decoder.conv_in.weight
        plain = latents.to(weight.device, weight.dtype) / self.spec.scaling_factor
        plain = (plain + self.spec.shift_factor)[None]
        if self.post_quant_conv is not None:
            plain = self.post_quant_conv(plain)
        y: Tensor = self.decoder(plain)[0]
        return y


def to_pixels(picture: Tensor) -> Tensor:
    """(3, H, W) in -1 .. 1 -> (H, W, 3) uint8 on the CPU."""
    unit = (picture.float() / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu()


def from_pixels(pixels: Tensor) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in -1 .. 1."""
    return (pixels.permute(2, 0, 1).float() / 255.0) * 2.0 - 1.0
