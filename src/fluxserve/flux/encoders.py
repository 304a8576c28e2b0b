"""The two text encoders, CLIP's and T5's, as layers named as in their published weights.

They are written out here because importing the library they come from takes longer than drawing a
picture with the small model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fluxserve.flux.spec import ClipSpec, T5Spec


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding that is not filled with chance: that alone would import torch's compiler."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def text_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the encoders compute in beside a transformer in `dtype`.

    Values of T5 grow beyond the largest float16; cut off there they would mean something else.
    """
    return torch.float32 if dtype is torch.float16 else dtype


# --- CLIP ---------------------------------------------------------------------------------------


class _ClipAttention(nn.Module):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.heads = spec.num_attention_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(spec.hidden_size, spec.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        def heads(name: str) -> Tensor:
            y: Tensor = self.get_submodule(name)(x)
            return torch.unflatten(y, -1, (self.heads, -1)).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            heads("q_proj"), heads("k_proj"), heads("v_proj"), is_causal=True
        )
        y: Tensor = self.get_submodule("out_proj")(mixed.transpose(1, 2).flatten(2))
        return y


class _ClipMlp(nn.Module):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.quick = spec.hidden_act == "quick_gelu"
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        h = h * torch.sigmoid(1.702 * h) if self.quick else functional.gelu(h)
        y: Tensor = self.fc2(h)
        return y


class _ClipLayer(nn.Module):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.self_attn = _ClipAttention(spec)
        self.layer_norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.mlp = _ClipMlp(spec)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class ClipText(nn.Module):
    """Token ids (B, T) -> one vector a prompt, (B, hidden_size)."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.eos = spec.eos_token_id
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": _table(spec.vocab_size, spec.hidden_size),
                "position_embedding": _table(spec.max_position_embeddings, spec.hidden_size),
            }
        )
        layers = nn.ModuleList(_ClipLayer(spec) for _ in range(spec.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings["token_embedding"](ids)
        x = x + self.embeddings["position_embedding"](positions)
        for layer in self.encoder["layers"].children():
            x = layer(x)
        # Older configs name 2 as the end of text by mistake; there it is the highest id of all.
        marks = ids if self.eos == 2 else (ids == self.eos).int()
        end = marks.argmax(dim=-1)
        y: Tensor = self.final_layer_norm(x)[torch.arange(len(ids), device=ids.device), end]
        return y


# --- T5 -----------------------------------------------------------------------------------------


class _T5Norm(nn.Module):
    def __init__(self, spec: T5Spec) -> None:
        super().__init__()
        self.eps = spec.layer_norm_epsilon
        self.weight = nn.Parameter(torch.ones(spec.d_model))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = x * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(self.weight.dtype)


class _T5Attention(nn.Module):
    def __init__(self, spec: T5Spec, *, first: bool) -> None:
        super().__init__()
        inner = spec.num_heads * spec.d_kv
        self.heads = spec.num_heads
        for name in ("q", "k", "v"):
            self.add_module(name, nn.Linear(spec.d_model, inner, bias=False))
        self.o = nn.Linear(inner, spec.d_model, bias=False)
        if first:
            buckets = spec.relative_attention_num_buckets
            self.relative_attention_bias = _table(buckets, spec.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        def heads(name: str) -> Tensor:
            y: Tensor = self.get_submodule(name)(x)
            return torch.unflatten(y, -1, (self.heads, -1)).transpose(1, 2)

        scores = heads("q") @ heads("k").transpose(2, 3) + bias
        mixed = scores.float().softmax(dim=-1).to(x.dtype) @ heads("v")
        y: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return y


class _T5Mlp(nn.Module):
    def __init__(self, spec: T5Spec) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(spec.d_model, spec.d_ff, bias=False)
        self.wi_1 = nn.Linear(spec.d_model, spec.d_ff, bias=False)
        self.wo = nn.Linear(spec.d_ff, spec.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.wo(functional.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))
        return y


def _t5_block(spec: T5Spec, *, first: bool) -> nn.ModuleDict:
    attention = nn.ModuleDict(
        {"SelfAttention": _T5Attention(spec, first=first), "layer_norm": _T5Norm(spec)}
    )
    mlp = nn.ModuleDict({"DenseReluDense": _T5Mlp(spec), "layer_norm": _T5Norm(spec)})
    return nn.ModuleDict({"layer": nn.ModuleList([attention, mlp])})


class T5Encoder(nn.Module):
    """Token ids (B, T) -> (B, T, d_model). Padding is attended to, as FLUX was trained."""

    def __init__(self, spec: T5Spec) -> None:
        super().__init__()
        self.spec = spec
        self.shared = _table(spec.vocab_size, spec.d_model)
        blocks = nn.ModuleList(_t5_block(spec, first=at == 0) for at in range(spec.num_layers))
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": _T5Norm(spec)})

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.shared(ids)
        bias = self._bias(ids.shape[1], ids.device)
        for block in self.encoder["block"].children():
            attention, mlp = block.get_submodule("layer").children()
            normed = attention.get_submodule("layer_norm")(x)
            x = x + attention.get_submodule("SelfAttention")(normed, bias)
            x = x + mlp.get_submodule("DenseReluDense")(mlp.get_submodule("layer_norm")(x))
        y: Tensor = self.encoder["final_layer_norm"](x)
        return y

    def _bias(self, length: int, device: torch.device) -> Tensor:
        """(1, heads, length, length): how much each head likes each distance."""
        at = torch.arange(length, device=device)
        buckets = _distance_buckets(at[None, :] - at[:, None], self.spec)
        table = self.get_submodule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias")
        y: Tensor = table(buckets).permute(2, 0, 1)[None]
        return y


def _distance_buckets(distance: Tensor, spec: T5Spec) -> Tensor:
    """Half of the buckets for each direction; near distances one by one, far ones by logarithm."""
    half = spec.relative_attention_num_buckets // 2
    exact = half // 2
    away = distance.abs()
    far = torch.log(away.float() / exact) / math.log(spec.relative_attention_max_distance / exact)
    far_bucket = (exact + (far * (half - exact)).nan_to_num(neginf=0).long()).clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(away < exact, away, far_bucket)


def clip_names(name: str) -> str:
    """Older checkpoints put everything under one more name."""
    return name.removeprefix("text_model.")


def t5_names(name: str) -> str:
    """The token embedding is stored under either of two names."""
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name
