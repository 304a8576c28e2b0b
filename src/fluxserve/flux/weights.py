"""Load a model folder in diffusers' layout onto a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluxserve.flux import quantize
from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.cache import Cache
from fluxserve.flux.encoders import ClipText, T5Encoder, clip_names, t5_names, text_dtype
from fluxserve.flux.folder import WeightsError, inspect, weight_files
from fluxserve.flux.modules import FluxTransformer, Placement, placements
from fluxserve.flux.offload import stream
from fluxserve.flux.singlefile import diffusers_names
from fluxserve.flux.skips import Linears
from fluxserve.flux.spec import ModelSpec
from fluxserve.flux.text import TextEncoder, load_tokenizer

STORED = ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")  # number types that can be read
Place = Callable[[str], Placement | None]
ROTATION_CACHE_BYTES = 64 * 2**20  # 14 layouts of an edit of one megapixel


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loaded model: its description and its three working parts."""

    spec: ModelSpec
    transformer: FluxTransformer
    autoencoder: Autoencoder
    text: TextEncoder
    rotations: Cache[Tensor] = field(  # by size of picture and references
        default_factory=lambda: Cache(ROTATION_CACHE_BYTES, lambda turns: turns.nbytes)
    )

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype


def choose_device(said: str = "auto") -> torch.device:
    """`auto` picks cuda, mps or cpu; a device that is not there raises WeightsError."""
    if said == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(said)
    except RuntimeError as error:
        raise WeightsError(f"device: cuda, cuda:N, mps or cpu, not {said!r}") from error
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if device.type in there and not there[device.type]():
        raise WeightsError(f"device: this machine has no usable {device.type}; use auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise WeightsError(f"device: {said} is not there; {torch.cuda.device_count()} found")
    return device


def choose_dtype(said: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU, where shorter types are emulated."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if said == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if said not in known:
        raise WeightsError(f"dtype: auto, {', '.join(known)}, not {said!r}")
    return known[said]


def load(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    linears: Linears = Linears.EXACT,
    streams_text: bool = False,
) -> Model:
    """Load a FLUX.1 model from `folder`; WeightsError says what is wrong with it.

    `linears` says how the large ones of the transformer are kept. Those that are wanted in 8 bits
    only become so while they are read, so neither the device nor main memory ever holds all of them
    exact. With `streams_text` the text encoders stay in main memory and visit the device layer by
    layer.
    """
    spec = inspect(folder)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    if linears is not Linears.EXACT:
        quantize.check(place)
    parts = _parts(folder, spec)
    host = torch.device("cpu")
    rounding = None
    if linears is Linears.FP8:
        rounding = quantize.Rounding(parts.network, place)
        _place_large(parts.network, kind)
    for part in (parts.network, parts.vae):
        _place(part, kind, place)
    for encoder in (parts.clip, parts.t5):
        _place(encoder, text_dtype(kind), host if streams_text else place)
    for module, source, goes in parts.sources(folder):
        _fill(module, source.name, _tensors(source), goes, rounding)
    if linears is Linears.BOTH:
        quantize.twin(parts.network)
    if streams_text:
        stream(parts.clip, place)
        stream(parts.t5, place)
    if place.type == "cuda":
        torch.cuda.synchronize(place)  # other streams than this thread's will read the weights
    return Model(spec, parts.network, parts.vae, _text(folder, spec, parts, kind))


def check(folder: Path) -> None:
    """Raise WeightsError unless all of a model is in `folder`; values are not read."""
    _parts(folder, inspect(folder))


# --- the parts ----------------------------------------------------------------------------------


class _Parts(NamedTuple):
    network: FluxTransformer
    vae: Autoencoder
    clip: ClipText
    t5: T5Encoder

    def sources(self, folder: Path) -> tuple[tuple[nn.Module, Path, Place], ...]:
        """Each part, the folder it is read from, and where a tensor of that goes."""
        names = placements(self.network.spec)
        return (
            (self.network, folder / "transformer", names.get),
            (self.vae, folder / "vae", Placement),
            (self.clip, folder / "text_encoder", lambda name: Placement(clip_names(name))),
            (self.t5, folder / "text_encoder_2", lambda name: Placement(t5_names(name))),
        )


def _parts(folder: Path, spec: ModelSpec) -> _Parts:
    """The parts without room for values, once it is known that `folder` has all of them."""
    with torch.device("meta"):
        parts = _Parts(
            FluxTransformer(spec.transformer),
            Autoencoder(spec.autoencoder),
            ClipText(spec.clip),
            T5Encoder(spec.t5),
        )
    for module, source, goes in parts.sources(folder):
        _fill(module, source.name, _shapes(source), goes)
    return parts


def _text(folder: Path, spec: ModelSpec, parts: _Parts, dtype: torch.dtype) -> TextEncoder:
    return TextEncoder(
        parts.clip,
        parts.t5,
        load_tokenizer(folder / "tokenizer"),
        load_tokenizer(folder / "tokenizer_2", length=spec.text_tokens),
        dtype=dtype,
    )


# --- read ---------------------------------------------------------------------------------------


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(folder):
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise WeightsError(f"{folder.name}/{path.name}: damaged; download it again") from error


def _shapes(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the shapes that the headers of the files tell, without room for values."""
    for path in weight_files(folder):
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    found = file.get_slice(name)
                    if found.get_dtype() not in STORED:
                        raise WeightsError(
                            f"{folder.name}/{path.name}: {name} is stored as {found.get_dtype()},"
                            f" one of {', '.join(STORED)} is needed; choose weights that are not"
                            " quantized"
                        )
                    yield name, torch.empty(found.get_shape(), device="meta")
        except SafetensorError as error:
            raise WeightsError(f"{folder.name}/{path.name}: damaged; download it again") from error


def _place(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Room for the parameters that have none yet.

    Not `to` and `to_empty`: on modules without room these import torch's compiler, for a second.
    """
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.is_meta:
                room = torch.empty(parameter.shape, dtype=dtype, device=device)
                setattr(layer, name, nn.Parameter(room, requires_grad=False))
    module.eval()


def _place_large(network: FluxTransformer, dtype: torch.dtype) -> None:
    """Room in main memory for the large linears; none is taken until values are written there."""
    for layer in quantize.large(network).values():
        _place(layer, dtype, torch.device("cpu"))


def _fill(
    module: nn.Module,
    part: str,
    tensors: Iterator[tuple[str, Tensor]],
    place: Place,
    complete: Callable[[str], None] | None = None,
) -> None:
    """Copy every tensor to where it belongs; nothing may be left over or missing.

    A module that has no room yet is only compared. `complete` is told of every parameter that has
    all of its rows.
    """
    rows_left = {name: parameter.shape[0] for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, tensor in diffusers_names(tensors):
            found = place(name)
            if found is None or found.parameter not in rows_left:
                raise WeightsError(f"{part}: unknown tensor {name}: another architecture")
            if rows_left[found.parameter] <= 0:
                continue  # once more under a second name
            target = module.get_parameter(found.parameter)[found.start : found.end]
            if target.shape != tensor.shape:
                raise WeightsError(
                    f"{part}: {name} is {tuple(tensor.shape)}, the config says"
                    f" {tuple(target.shape)}: weights and config do not belong together"
                )
            target.copy_(tensor)
            rows_left[found.parameter] -= tensor.shape[0]
            if complete is not None and rows_left[found.parameter] <= 0:
                complete(found.parameter)
    lacking = [name for name, rows in rows_left.items() if rows > 0]
    if lacking:
        raise WeightsError(f"{part}: {len(lacking)} tensors missing, like {lacking[0]}")
