"""The flow transformer and its text encoders, as the pipelines use them, for training.

pictures -> latents -> tokens; prompts -> T5 and CLIP; FluxTransformer2DModel -> velocity.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from training import words
from training.data import Bank
from training.scenes import Size
from training.vae import LATENTS

log = logging.getLogger(__name__)

TEXT_TOKENS: Final = 16
TOKEN: Final = 4 * LATENTS
CLIP_TOKENS: Final = 24
SHIFT_MIN, SHIFT_MAX = 0.5, 1.15


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, 4C): each 2 x 2 patch becomes a token. H and W are even."""
    batch, channels, height, width = latents.shape
    cut = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpack(tokens: Tensor, size: Size) -> Tensor:
    """The inverse of `pack`; size is the picture's, in pixels."""
    height, width = size[0] // 16, size[1] // 16
    cut = tokens.view(len(tokens), height, width, -1, 2, 2)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height * 2, width * 2)


def positions(size: Size, index: int) -> Tensor:
    """(N, 3) of (index, row, column): 0 for what is drawn, 1 for the reference."""
    rows, columns = torch.meshgrid(
        torch.arange(size[0] // 16), torch.arange(size[1] // 16), indexing="ij"
    )
    return torch.stack([torch.full_like(rows, index), rows, columns], -1).view(-1, 3).float()


def sigmas(steps: int, tokens: int) -> list[float]:
    """The pipeline's noise levels: shifted by the token count, ending at 0."""
    mu = SHIFT_MIN + (SHIFT_MAX - SHIFT_MIN) * (tokens - 256) / (4096 - 256)
    levels = torch.linspace(1, 1 / steps, steps)
    shifted = math.exp(mu) / (math.exp(mu) + (1 / levels - 1))
    return [*shifted.tolist(), 0.0]


def new_words(bank: Bank) -> list[str]:
    """Every word a prompt of this project may hold, sorted."""
    texts = [name for thing in bank.things for name in thing.names]
    for phrases in words.EFFECT_PHRASES.values():
        texts += phrases
    for phrases in words.STYLE_PHRASES.values():
        texts += phrases
    texts += [*words.ADDITIONS, "object a 3d flat line picture of icon red"]
    texts += [p for group in (words.RECOLOR_PHRASES, words.ADD_PHRASES) for p in group]
    found = {w for text in texts for w in text.replace("-", " ").split() if w.isalnum()}
    return sorted(found)


def extend_tokenizer(source: Path, target: Path, vocabulary: Sequence[str]) -> None:
    """Copy a T5 tokenizer, adding whole words (and their capitalised twins) at the end."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    path = target / "tokenizer.json"
    state = json.loads(path.read_text("utf-8"))
    pieces = state["model"]["vocab"]
    have = {piece for piece, _ in pieces}
    for word in vocabulary:
        for piece, score in (("\u2581" + word, -9.0), ("\u2581" + word.capitalize(), -10.0)):
            if piece not in have:
                pieces.append([piece, score])
                have.add(piece)
    path.write_text(json.dumps(state, ensure_ascii=False), "utf-8")


@torch.no_grad()
def widened(old: Any) -> Any:
    """The transformer for TOKEN numbers a token; those it did not know start without effect.

    A token's numbers are ordered by channel, so the new channels come after the old ones.
    """
    if old.config.in_channels >= TOKEN:
        return old
    new: Any = FluxTransformer2DModel.from_config({**old.config, "in_channels": TOKEN})
    state = old.state_dict()
    for name in ("x_embedder.weight", "proj_out.weight", "proj_out.bias"):
        wide = torch.zeros_like(new.state_dict()[name])
        wide[tuple(slice(0, length) for length in state[name].shape)] = state[name]
        state[name] = wide
    new.load_state_dict(state)
    return new


class Model(torch.nn.Module):
    """Transformer, CLIP and T5 under one roof, started from a checkpoint in diffusers layout."""

    def __init__(self, checkpoint: Path, tokenizers: Path) -> None:
        super().__init__()
        load: dict[str, Any] = {"torch_dtype": torch.float32}
        self.transformer: Any = widened(
            FluxTransformer2DModel.from_pretrained(checkpoint / "transformer", **load)
        )
        self.clip: Any = CLIPTextModel.from_pretrained(
            checkpoint / "text_encoder", dtype=torch.float32
        )
        self.t5: Any = T5EncoderModel.from_pretrained(
            checkpoint / "text_encoder_2", dtype=torch.float32
        )
        self.clip_tokenizer: Any = CLIPTokenizer.from_pretrained(tokenizers / "tokenizer")
        self.fast: dict[Size, Callable[..., Any]] = {}
        self.t5_tokenizer: Any = T5TokenizerFast.from_pretrained(tokenizers / "tokenizer_2")
        grow = len(self.t5_tokenizer) - self.t5.get_input_embeddings().weight.shape[0]
        if grow > 0:
            log.info("%d new words", grow)
            self.t5.resize_token_embeddings(len(self.t5_tokenizer), mean_resizing=False)
            with torch.no_grad():
                table = self.t5.get_input_embeddings().weight
                spread = table[:-grow].std()
                table[-grow:] = table[:-grow].mean(0) + torch.randn_like(table[-grow:]) * spread

    def compile_for(self, sizes: Sequence[Size]) -> None:
        """Compile training's forward and backward for these picture sizes: a minute each."""
        fast = torch.compile(lambda **inputs: self.transformer(**inputs), dynamic=False)
        self.fast = dict.fromkeys(sizes, fast)

    def text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Pooled (B, 128) and sequence (B, 16, 128) of the prompts."""
        device = next(self.transformer.parameters()).device
        options: dict[str, Any] = {
            "padding": "max_length",
            "truncation": True,
            "return_tensors": "pt",
        }
        short = self.clip_tokenizer(list(prompts), max_length=CLIP_TOKENS, **options)
        long = self.t5_tokenizer(list(prompts), max_length=TEXT_TOKENS, **options)
        pooled = self.clip(short.input_ids.to(device)).pooler_output
        return pooled, self.t5(long.input_ids.to(device)).last_hidden_state

    def velocity(
        self,
        noisy: Tensor,
        level: Tensor,
        text: tuple[Tensor, Tensor],
        size: Size,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, N, TOKEN) and noise levels (B,) in 0 to 1 -> velocity, like the tokens."""
        count = noisy.shape[1]
        where = positions(size, 0)
        if reference is not None:
            noisy = torch.cat([noisy, reference], 1)
            where = torch.cat([where, positions(size, 1)])
        pooled, sequence = text
        fast = self.fast.get(size) if torch.is_grad_enabled() else None
        out: Tensor = (fast or self.transformer)(
            hidden_states=noisy,
            timestep=level,
            guidance=None,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(TEXT_TOKENS, 3, device=noisy.device),
            img_ids=where.to(noisy.device),
            return_dict=False,
        )[0]
        return out[:, :count]

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        size: Size,
        reference: Tensor | None = None,
        steps: int = 10,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> Tensor:
        """Euler's method as the pipelines run it: packed latents (B, N, TOKEN)."""
        tokens = size[0] * size[1] // 256
        device = next(self.transformer.parameters()).device
        noise = torch.Generator().manual_seed(seed)
        x = torch.randn(len(prompts), tokens, TOKEN, generator=noise).to(device)
        asked, empty = self.text(prompts), self.text([""] * len(prompts))
        levels = sigmas(steps, tokens)
        for now, after in pairwise(levels):
            level = torch.full((len(prompts),), now, device=device)
            v = self.velocity(x, level, asked, size, reference)
            if guidance != 1.0:
                plain = self.velocity(x, level, empty, size, reference)
                v = plain + guidance * (v - plain)
            x = x + (after - now) * v
        return x
