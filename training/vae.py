"""The autoencoder: a linear encoder written exactly into AutoencoderKL, and a trained decoder.

The encoder is the best 24 numbers for each 8 x 8 block (principal components). As a matrix product
it costs nothing in training, so no latents are cached and every augmentation is free.

    python -m training.vae --minutes 40 [--resume] [--start FOLDER [--refit]]
"""

import argparse
import logging
import math
import time
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from training.data import WORK, Bank, load
from training.scenes import Mix, Scenes, Size

log = logging.getLogger(__name__)

CHANNELS: Final = (16, 32, 64, 96)
LATENTS: Final = 24
GROUPS: Final = 8
BLOCK: Final = 8
CANVAS: Final[Size] = (128, 128)
# Constant channels of this size make the encoder's last GroupNorm a fixed scale.
ANCHOR: Final = 600.0
MIX: Final = Mix({"gray": 1.0}, {"noto": 3.0, "3d": 1.0, "flat": 1.0, "line": 1.0}, 0.6)


def new_vae() -> Any:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=GROUPS,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


# --- the linear encoder ---------------------------------------------------------------------


def blocks(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H/8, W/8, 192): channel, row, column of each 8 x 8 block."""
    cut: Tensor = x.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3)


def encode(x: Tensor, matrix: Tensor) -> Tensor:
    """Pictures in -1 to 1 -> latents (B, 24, H/8, W/8), the numbers the AutoencoderKL gives."""
    latents: Tensor = (blocks(x) @ matrix).permute(0, 3, 1, 2)
    return latents


def decode_linear(z: Tensor, matrix: Tensor) -> Tensor:
    """The best linear picture of latents; what the trained decoder has to beat."""
    flat = z.permute(0, 2, 3, 1) @ torch.linalg.pinv(matrix)
    batch, height, width, _ = flat.shape
    parts: Tensor = flat.view(batch, height, width, 3, BLOCK, BLOCK).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(batch, 3, height * BLOCK, width * BLOCK)


@torch.no_grad()
def read_matrix(vae: Any) -> Tensor:
    """The (192, C) matrix of a linear encoder, read off by encoding each single pixel."""
    pixels = torch.eye(3 * BLOCK * BLOCK).view(-1, 3, BLOCK, BLOCK)
    return torch.cat(
        [vae.encode(part).latent_dist.mode().flatten(1) for part in torch.split(pixels, 32)]
    )


def fit_matrix(pictures: Tensor, old: Tensor | None) -> Tensor:
    """Principal components of the blocks, partly whitened; turned to agree with `old` if given."""
    rows = blocks(pictures).flatten(0, 2)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    basis = vectors.flip(1)[:, :LATENTS]
    if old is None:
        scale = values.flip(0)[:LATENTS].sqrt().rsqrt()
        power = (values.flip(0)[:LATENTS] * scale**2).mean().sqrt()
        whitened: Tensor = basis * scale / power
        return whitened
    gain = old.norm(dim=0)
    left, _, right = torch.linalg.svd(basis.T @ (old / gain))
    turned: Tensor = basis @ left @ right
    agree = (turned * old / gain).sum(0)
    spread = (rows @ turned).std(0)
    rule = (gain * spread.sqrt())[agree > 0.9].median() * spread.rsqrt()
    log.info("agreement with the old basis: %s", [round(a, 2) for a in agree.tolist()])
    return turned * torch.where(agree > 0.9, gain, rule)


def extend_matrix(pictures: Tensor, old: Tensor) -> Tensor:
    """The old basis, and after it the principal components of what it leaves: (192, LATENTS)."""
    rows = blocks(pictures).flatten(0, 2)
    base, _ = torch.linalg.qr(old)
    left = rows - rows @ base @ base.T
    _, vectors = torch.linalg.eigh(left.T @ left / len(left))
    fresh = vectors.flip(1)[:, : LATENTS - old.shape[1]]
    rule = (old.norm(dim=0) * (rows @ (old / old.norm(dim=0))).std(0).sqrt()).median()
    return torch.cat([old, fresh * rule * (rows @ fresh).std(0).rsqrt()], 1)


@torch.no_grad()
def widen_decoder(vae: Any, state: dict[str, Tensor]) -> None:
    """Load a decoder of fewer latent channels; it does not see the new ones yet."""
    name = "conv_in.weight"
    wide = torch.zeros_like(vae.decoder.state_dict()[name])
    wide[:, : state[name].shape[1]] = state[name]
    vae.decoder.load_state_dict({**state, name: wide})


def factor(matrix: Tensor) -> list[Tensor]:
    """(192, 24) -> maps of three 2 x 2 reductions: (12, 3, 2, 2), (32, 12, 2, 2), (24, 32, 2, 2).

    The first keeps everything; the second keeps the 32 directions the third looks at most.
    """
    first: Tensor = torch.eye(12).view(12, 3, 2, 2)
    # Pixel (y, x) of a block = bits y = 4a + 2b + c: a outermost reduction, c innermost.
    cube = matrix.view(3, 2, 2, 2, 2, 2, 2, LATENTS)  # colour, ya, yb, yc, xa, xb, xc, latent
    quarter = cube.permute(0, 3, 6, 2, 5, 1, 4, 7).reshape(48, 4 * LATENTS)
    left, _, _ = torch.linalg.svd(quarter)
    keep = left[:, : CHANNELS[1]]
    second = keep.T.reshape(CHANNELS[1], 12, 2, 2)
    third = (keep.T @ quarter).view(CHANNELS[1], 2, 2, LATENTS).permute(3, 0, 1, 2)
    return [first, second, third.contiguous()]


@torch.no_grad()
def install_encoder(vae: Any, matrix: Tensor) -> None:
    """Write the linear encoder into the AutoencoderKL's convolutions.

    Residual branches are silenced, strided convolutions do the 2 x 2 reductions, and the last
    GroupNorm + SiLU are made linear: constant channels fix the norm's scale, and
    silu(x) - silu(-x) = x.
    """
    encoder = vae.encoder
    for block in [*encoder.down_blocks, encoder.mid_block]:
        for resnet in block.resnets:
            resnet.conv2.weight.zero_()
            resnet.conv2.bias.zero_()
    encoder.conv_in.weight.zero_()
    encoder.conv_in.bias.zero_()
    for c in range(3):
        encoder.conv_in.weight[c, c, 1, 1] = 1
    maps = factor(matrix)
    for block, weights in zip(encoder.down_blocks, maps, strict=False):
        out, into = weights.shape[:2]
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            shortcut.weight.zero_()
            shortcut.bias.zero_()
            for c in range(into):
                shortcut.weight[c, c, 0, 0] = 1
        conv = block.downsamplers[0].conv
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[:out, :into, :2, :2] = weights
    install_output(encoder)


def install_output(encoder: Any) -> None:
    """The encoder's last block, norm and convolution as the identity on the latents."""
    shortcut = encoder.down_blocks[-1].resnets[0].conv_shortcut
    norm, last = encoder.conv_norm_out, encoder.conv_out
    for part in (shortcut.weight, shortcut.bias, norm.weight, norm.bias, last.weight, last.bias):
        part.zero_()
    per_group, latents_per_group = CHANNELS[-1] // GROUPS, LATENTS // GROUPS
    anchors = per_group - 2 * latents_per_group
    anchors -= anchors % 2
    scale = math.sqrt(anchors * ANCHOR**2 / per_group)
    for latent in range(LATENTS):
        group, position = divmod(latent, latents_per_group)
        for sign, offset in ((1, 0), (-1, 1)):
            channel = group * per_group + 2 * position + offset
            shortcut.weight[channel, latent, 0, 0] = sign
            norm.weight[channel] = scale
            last.weight[latent, channel, 1, 1] = sign
    for group in range(GROUPS):
        for i in range(anchors):
            channel = group * per_group + 2 * latents_per_group + i
            shortcut.bias[channel] = ANCHOR if i % 2 else -ANCHOR
    last.bias[LATENTS:] = -30.0


# --- measuring ------------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Per picture, for values in -1 to 1."""
    marks: Tensor = -10 * torch.log10(((a.clamp(-1, 1) - b) / 2).pow(2).flatten(1).mean(1))
    return marks


def held_out_photos(bank: Bank, side: int) -> Tensor:
    """The held-out photographs, whole, at side x side pixels, in -1 to 1."""
    photos = bank.photos[bank.photo_rows(held_out=True)].float() / 127.5 - 1
    return torch.nn.functional.interpolate(photos, (side, side), mode="bicubic", antialias=True)


@torch.no_grad()
def decoded(vae: Any, matrix: Tensor, pictures: Tensor) -> Tensor:
    result: Tensor = vae.decode(encode(pictures, matrix)).sample
    return result


# --- training -------------------------------------------------------------------------------


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss(got: Tensor, want: Tensor) -> Tensor:
    """Absolute, gradient and squared error together: sharp edges, and most of all a good PSNR."""
    gradient = sum((a - b).abs().mean() for a, b in zip(edges(got), edges(want), strict=True))
    return 0.5 * (got - want).abs().mean() + 0.25 * gradient + 12 * (got - want).pow(2).mean()


class Trainer:
    """Trains the decoder; its state lies in one file."""

    def __init__(
        self, work: Path, start: Path | None, resume: bool, refit: bool, device: str
    ) -> None:
        self.path, self.device = work / "vae.pt", device
        bank = load(work)
        self.scenes = Scenes(bank, MIX, seed=5, device=device)
        self.vae = new_vae()
        self.step = 0
        state: dict[str, Any] = {}
        if resume:
            state = torch.load(self.path, weights_only=True)
            self.matrix, self.step = state["matrix"], state["step"]
        else:
            old = None
            if start is not None:
                shipped: Any = AutoencoderKL.from_pretrained(start, torch_dtype=torch.float32)
                old = read_matrix(shipped)
                widen_decoder(self.vae, shipped.decoder.state_dict())
            sample = torch.cat([self.scenes.images(32, CANVAS) for _ in range(12)]).cpu() * 2 - 1
            if old is None or refit:
                self.matrix = fit_matrix(sample, old)
            elif old.shape[1] < LATENTS:
                self.matrix = extend_matrix(sample, old)
            else:
                self.matrix = old
        install_encoder(self.vae, self.matrix)
        checks = Scenes(bank, MIX, seed=77).images(48, CANVAS) * 2 - 1
        self.checks = {"photos": held_out_photos(bank, 128), "scenes": checks}
        exact = (encode(checks, self.matrix) - self.encoded(checks)).abs().max()
        log.info("encoder against its matrix: largest difference %.1e", exact)
        for name, pictures in self.checks.items():
            flat = decode_linear(encode(pictures, self.matrix), self.matrix)
            log.info("%s: linear %.2f dB", name, psnr(flat, pictures).mean())
        self.decoder = self.vae.decoder.to(device, memory_format=torch.channels_last)
        if state:
            self.decoder.load_state_dict(state["decoder"])
        self.optimizer = torch.optim.AdamW(
            self.decoder.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.average = {k: v.clone() for k, v in self.decoder.state_dict().items()}
        if state:
            self.average = state["average"]
            self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def encoded(self, x: Tensor) -> Tensor:
        result: Tensor = self.vae.encode(x).latent_dist.mode()
        return result

    def crops(self, count: int, side: int) -> Tensor:
        """Square pictures in -1 to 1: whole ones, or two crops from each of count / 2 of them.

        Crops are cheaper to vary, but the decoder's group norms see other means in them than in
        the whole pictures it will be asked for: end with whole ones, which gave 0.8 dB in an hour.
        """
        if side == CANVAS[0]:
            return self.scenes.images(count, CANVAS) * 2 - 1
        whole = self.scenes.images(count // 2, CANVAS)
        cuts = []
        for _ in range(2):
            top, left = (self.scenes.random.randrange(0, 129 - side, BLOCK) for _ in range(2))
            cuts.append(whole[..., top : top + side, left : left + side])
        return torch.cat(cuts) * 2 - 1

    def train(self, minutes: float, batch: int, side: int, rate: float) -> None:
        begin = told = time.monotonic()
        matrix = self.matrix.to(self.device)
        while (done := (time.monotonic() - begin) / (60 * minutes)) < 1:
            now = rate * min(1, (self.step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * done))
            for group in self.optimizer.param_groups:
                group["lr"] = now + 1e-5
            x = self.crops(batch, side)
            z = encode(x, matrix)
            z = z + torch.randn_like(z) * 0.05 * torch.rand(batch, 1, 1, 1, device=z.device)
            got = self.decoder(z.contiguous(memory_format=torch.channels_last))
            error = loss(got, x)
            self.optimizer.zero_grad()
            torch.autograd.backward(error)
            torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            keep = min(0.998, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, value in self.decoder.state_dict().items():
                    self.average[name].lerp_(value, 1 - keep)
            if time.monotonic() - told > 120:
                told = time.monotonic()
                self.report(error.item(), done)
        self.report(error.item(), 1.0)

    def report(self, error: float, done: float) -> None:
        """Measure the averaged decoder on held-out pictures and save everything."""
        raw = {k: v.clone() for k, v in self.decoder.state_dict().items()}
        self.decoder.load_state_dict(self.average)
        marks = {
            name: float(psnr(decoded(self.vae.cpu(), self.matrix, x), x).mean())
            for name, x in self.checks.items()
        }
        self.decoder.load_state_dict(raw)
        self.decoder.to(self.device)
        log.info("step %d (%.0f %%) loss %.4f %s", self.step, 100 * done, error, marks)
        state = {"matrix": self.matrix, "step": self.step, "decoder": raw}
        state |= {"average": self.average, "optimizer": self.optimizer.state_dict()}
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").rename(self.path)


def load_vae(work: Path, start: Path) -> tuple[Any, Tensor]:
    """The autoencoder (averaged decoder) and its encoder matrix.

    From vae.pt under `work` where one was trained, else from the checkpoint training began with.
    """
    if not (work / "vae.pt").exists():
        shipped: Any = AutoencoderKL.from_pretrained(start / "vae", torch_dtype=torch.float32)
        return shipped.eval(), read_matrix(shipped)
    state = torch.load(work / "vae.pt", weights_only=True, map_location="cpu")
    vae = new_vae()
    install_encoder(vae, state["matrix"])
    vae.decoder.load_state_dict(state["average"])
    return vae.eval(), state["matrix"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="vae folder of a checkpoint to begin from")
    parser.add_argument(
        "--refit", action="store_true", help="fit the encoder anew, turned towards the start's"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(options.work, options.start, options.resume, options.refit, device)
    trainer.train(options.minutes, options.batch, options.crop, options.rate)


if __name__ == "__main__":
    main()
