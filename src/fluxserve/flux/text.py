"""Prompts to embeddings: CLIP says what it is about in one vector, T5 token by token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from fluxserve.flux.cache import Cache, CacheStats
from fluxserve.flux.encoders import ClipText, T5Encoder

CACHE_BYTES = 256 * 2**20  # 60 prompts of FLUX.1 dev in bfloat16

# How CLIP cuts text before pairs are merged, and the marks around every prompt.
_CLIP_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, slots=True, eq=False)
class TextEmbedding:
    """What the transformer reads of a prompt."""

    tokens: Tensor  # (T, d_model) of T5
    pooled: Tensor  # (hidden_size,) of CLIP

    @property
    def size_bytes(self) -> int:
        return self.tokens.nbytes + self.pooled.nbytes


class TextEncoder:
    """Both encoders with their tokenizers, and a memory of the prompts seen."""

    def __init__(
        self,
        clip: ClipText,
        t5: T5Encoder,
        clip_tokenizer: Tokenizer,
        t5_tokenizer: Tokenizer,
        *,
        dtype: torch.dtype,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """`dtype` is that of embeddings, whatever the encoders compute in."""
        self.clip, self.t5 = clip, t5
        self._dtype = dtype
        self._tokenizers = (clip_tokenizer, t5_tokenizer)
        self._cache: Cache[TextEmbedding] = Cache(cache_bytes, lambda value: value.size_bytes)

    def encode(self, prompt: str) -> TextEmbedding:
        """Embed one prompt; what exceeds the model's text length is cut off."""
        return self._cache.get(prompt, lambda: self._encode(prompt))

    @torch.inference_mode()
    def _encode(self, prompt: str) -> TextEmbedding:
        device = self.clip.final_layer_norm.weight.device
        short, long = (
            torch.tensor([tokenizer.encode(prompt).ids], device=device)
            for tokenizer in self._tokenizers
        )
        return TextEmbedding(
            tokens=self.t5(long)[0].to(self._dtype), pooled=self.clip(short)[0].to(self._dtype)
        )

    def forget(self) -> None:
        """Let go of the embeddings of prompts seen before."""
        self._cache.clear()

    @property
    def cache_stats(self) -> CacheStats:
        return self._cache.stats


def load_tokenizer(folder: Path, *, length: int | None = None) -> Tokenizer:
    """A tokenizer that pads and cuts to `length`, or to the length its own config names.

    Reads tokenizer.json, or CLIP's older vocab.json and merges.txt. OSError where neither is there.
    """
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    whole = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(whole)) if whole.exists() else _clip_tokenizer(folder)
    length = length or int(config["model_max_length"])
    pad = _token(config["pad_token"])
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer


def _token(said: str | Mapping[str, str]) -> str:
    return said if isinstance(said, str) else said["content"]


def _clip_tokenizer(folder: Path) -> Tokenizer:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for left, right in pairs],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=_CLIP_END,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (_CLIP_END, vocabulary[_CLIP_END]),
        (_CLIP_START, vocabulary[_CLIP_START]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    tokenizer.add_special_tokens([_CLIP_START, _CLIP_END])
    return tokenizer
