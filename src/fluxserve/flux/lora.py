"""Read LoRA files of every common spelling into deltas for the layers of our transformer.

    diffusers, PEFT   transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight
    kohya             lora_unet_double_blocks_3_img_attn_qkv.lora_down.weight, .alpha
    BFL names         diffusion_model.double_blocks.3.img_attn.qkv.lora_A.weight

The base weights are never touched: a delta is added on the rows of the request that asked for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from torch import Tensor

from fluxserve.flux import singlefile
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.modules import Placement, placements
from fluxserve.flux.prepare import Adapter, LowRank
from fluxserve.flux.spec import TransformerSpec

RANK_MAX = 512
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.diffusion_model.")
UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
TEXT = ("lora_te", "text_encoder", "text_encoders.", "te1_", "clip_l.", "t5xxl.")
DOWN = ("lora_A", "lora_down", "lora.down")
UP = ("lora_B", "lora_up", "lora.up")
_LEAF = re.compile(
    r"(?P<layer>.+?)\.(?P<leaf>lora_[AB]|lora_(?:down|up)|lora\.(?:down|up))"
    r"(?:\.(?!weight$)\w+)?(?:\.weight)?"
)
# Other kinds of adapters, by a piece of their tensor names (a regular expression).
_FOREIGN = {
    "lokr_": "a LoKr",
    "hada_": "a LoHa",
    "oft_": "an OFT",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "proj_lora": "an XLabs adapter",
    "qkv_lora": "an XLabs adapter",
    r"\.diff(_b)?$": "a full difference",
    r"lora_B\.bias": "a LoRA with biases",
}


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file, read: CPU tensors in float32, the file's own scale inside each delta."""

    deltas: Adapter
    text_layers: int  # of text encoders, which are not applied

    @property
    def size_bytes(self) -> int:
        return sum(
            tensor.numel() * tensor.element_size()
            for parts in self.deltas.values()
            for part in parts
            for tensor in (part.down, part.up)
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Lora:
        """The same on a device, in the dtype of the model."""
        return Lora(
            {
                layer: [
                    LowRank(
                        part.down.to(device, dtype),
                        part.up.to(device, dtype),
                        part.scale,
                        part.start,
                        part.end,
                    )
                    for part in parts
                ]
                for layer, parts in self.deltas.items()
            },
            self.text_layers,
        )

    def scaled(self, scale: float) -> Adapter:
        """As a request asks for it; shares its tensors with this one."""
        return {
            layer: [
                LowRank(part.down, part.up, part.scale * scale, part.start, part.end)
                for part in parts
            ]
            for layer, parts in self.deltas.items()
        }


@dataclass(slots=True)
class _Pair:
    """What a file holds for one layer."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a delta goes: a linear of ours, and which of its outputs."""

    layer: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class _Scales:
    """What the file's metadata says about scales, as PEFT writes it."""

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    is_rank_stabilised: bool = False

    def of(self, layer: str, pair: _Pair, rank: int) -> float:
        alpha = pair.alpha
        if alpha is None:
            named = [value for name, value in self.patterns.items() if layer.endswith(name)]
            alpha = named[0] if named else self.alpha
        if alpha is None:
            return 1.0
        return alpha / (rank**0.5 if self.is_rank_stabilised else rank)


def read(source: Path | bytes, spec: TransformerSpec) -> Lora:
    """Read a LoRA for a transformer of these dimensions.

    Raises WeightsError when it is no LoRA, is damaged, was made for another architecture, or
    changes layers that a request cannot change for itself.
    """
    tensors, metadata = _tensors(source)
    pairs, text_layers = _pairs(tensors)
    if not pairs:
        what = "only text encoder layers" if text_layers else "no LoRA layers"
        raise WeightsError(f"LoRA: the file has {what}")
    targets, scales = _targets(spec), _scales(metadata)
    sizes = _sizes(spec)
    deltas: dict[str, list[LowRank]] = {}
    for layer, pair in sorted(pairs.items()):
        target = targets.get(layer)
        if target is None:
            raise WeightsError(f"LoRA: layer {layer} is unknown: made for another architecture")
        if target.layer not in sizes:
            raise WeightsError(f"LoRA: it changes {layer}, which all requests share")
        delta = _delta(layer, pair, target, sizes[target.layer], scales)
        deltas.setdefault(target.layer, []).append(delta)
    return Lora(deltas, text_layers)


# --- the file -----------------------------------------------------------------------------------


def _tensors(source: Path | bytes) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    try:
        if isinstance(source, bytes):
            return load_bytes(source), _metadata(source)
        with safe_open(str(source), framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError("LoRA: no safetensors file, or a damaged one") from error


def _metadata(data: bytes) -> Mapping[str, str]:
    length = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return found if isinstance(found, dict) else {}


def _scales(metadata: Mapping[str, str]) -> _Scales:
    try:
        said = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return _Scales()
    said = {key.removeprefix("transformer."): value for key, value in said.items()}
    alpha = said.get("lora_alpha")
    return _Scales(
        float(alpha) if alpha is not None else None,
        {str(k): float(v) for k, v in (said.get("alpha_pattern") or {}).items()},
        bool(said.get("use_rslora")),
    )


def _pairs(tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, _Pair], int]:
    """By layer, as the file names it without its prefix; and how many text encoder layers."""
    pairs: dict[str, _Pair] = {}
    text: set[str] = set()
    for name, tensor in tensors.items():
        foreign = [kind for piece, kind in _FOREIGN.items() if re.search(piece, name)]
        if foreign:
            raise WeightsError(
                f"LoRA: {name} belongs to {foreign[0]}, only plain LoRA is supported"
            )
        found = _LEAF.fullmatch(name)
        layer = found["layer"] if found else name.removesuffix(".alpha")
        if not found and layer == name:
            raise WeightsError(f"LoRA: {name} is no part of a LoRA")
        if layer.startswith(TEXT):
            text.add(layer)
            continue
        pair = pairs.setdefault(_bare(layer), _Pair())
        if not found:
            pair.alpha = float(tensor)
        elif found["leaf"] in DOWN:
            pair.down = tensor
        else:
            pair.up = tensor
    return pairs, len(text)


def _bare(layer: str) -> str:
    for prefix in (*PREFIXES, *UNDERSCORED):
        layer = layer.removeprefix(prefix)
    return layer


# --- where it goes ------------------------------------------------------------------------------


def _targets(spec: TransformerSpec) -> Mapping[str, _Target]:
    """Every spelling of every linear -> where it is in our transformer."""
    places = placements(spec)
    found: dict[str, _Target] = {}

    def know(name: str, pieces: Sequence[Placement]) -> None:
        layer = pieces[0].parameter.removesuffix(".weight")
        found[name] = found[name.replace(".", "_")] = _Target(
            layer, pieces[0].start, pieces[-1].end
        )

    for name, place in places.items():
        if name.endswith(".weight"):
            know(name.removesuffix(".weight"), [place])
    for name in singlefile.layers(spec):
        names = [f"{theirs}.weight" for theirs in singlefile.layer_names(name)]
        if all(theirs in places for theirs in names):
            know(name, [places[theirs] for theirs in names])
    return found


def _sizes(spec: TransformerSpec) -> Mapping[str, tuple[int, int]]:
    """(inputs, outputs) of the linears that a request may change for itself."""
    return dict(_blocks(spec))


def _blocks(spec: TransformerSpec) -> Iterator[tuple[str, tuple[int, int]]]:
    width = spec.width
    for index in range(spec.num_layers):
        for stream in ("image", "text"):
            place = f"doubles.{index}.{stream}"
            yield f"{place}.modulation", (width, 6 * width)
            yield f"{place}.qkv", (width, 3 * width)
            yield f"{place}.out", (width, width)
            yield f"{place}.up", (width, 4 * width)
            yield f"{place}.down", (4 * width, width)
    for index in range(spec.num_single_layers):
        yield f"singles.{index}.modulation", (width, 3 * width)
        yield f"singles.{index}.fused", (width, 7 * width)
        yield f"singles.{index}.out", (5 * width, width)


def _delta(
    layer: str, pair: _Pair, target: _Target, size: tuple[int, int], scales: _Scales
) -> LowRank:
    if pair.down is None or pair.up is None:
        raise WeightsError(f"LoRA: {layer} has only one of its two matrices")
    outputs = (target.end or size[1]) - target.start
    down, up = pair.down.float(), pair.up.float()
    rank = down.shape[0]
    if down.shape != (rank, size[0]) or up.shape != (outputs, rank):
        raise WeightsError(
            f"LoRA: {layer} is {tuple(up.shape)} x {tuple(down.shape)}, here ({outputs}, rank) x"
            f" (rank, {size[0]}) fits: made for another architecture"
        )
    if not 1 <= rank <= RANK_MAX:
        raise WeightsError(f"LoRA: {layer} has rank {rank}, 1 to {RANK_MAX} is supported")
    if not (down.isfinite().all() and up.isfinite().all()):
        raise WeightsError(f"LoRA: {layer} holds values that are no numbers")
    scale = scales.of(layer, pair, rank)
    return LowRank(down.T.contiguous(), up.T.contiguous(), scale, target.start, target.end)
