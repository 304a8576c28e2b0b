"""Load a model folder in diffusers' layout onto a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluxserve.flux import quantize
from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.cache import Cache
from fluxserve.flux.encoders import ClipText, T5Encoder, clip_names, t5_names
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
    only are read into main memory first, so the device never holds more than the result. With
    `streams_text` the text encoders stay in main memory and visit the device layer by layer.
    """
    spec = inspect(folder)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    names = placements(spec.transformer)
    with torch.device("meta"):
        network = FluxTransformer(spec.transformer)
        vae, clip, t5 = Autoencoder(spec.autoencoder), ClipText(spec.clip), T5Encoder(spec.t5)
    if linears is not Linears.EXACT:
        quantize.check(place)
    host = torch.device("cpu")
    sources: tuple[tuple[nn.Module, Path, Place], ...] = (
        (network, folder / "transformer", lambda name: names.get(name)),
        (vae, folder / "vae", Placement),
        (clip, folder / "text_encoder", lambda name: Placement(clip_names(name))),
        (t5, folder / "text_encoder_2", lambda name: Placement(t5_names(name))),
    )
    for part, source, goes in sources:
        _fill(part, source.name, _shapes(source), goes)  # nothing is read yet: is all of it there?
    of_text = host if streams_text else place
    parts: tuple[tuple[nn.Module, torch.device], ...] = (
        (network, host if linears is Linears.FP8 else place),
        (vae, place),
        (clip, of_text),
        (t5, of_text),
    )
    for part, where in parts:
        _place(part, kind, where)
    for part, source, goes in sources:
        _fill(part, source.name, _tensors(source), goes)
    if linears is Linears.FP8:
        quantize.quantize(network, place)
    elif linears is Linears.BOTH:
        quantize.twin(network)
    if streams_text:
        stream(clip, place)
        stream(t5, place)
    text = TextEncoder(
        clip,
        t5,
        load_tokenizer(folder / "tokenizer"),
        load_tokenizer(folder / "tokenizer_2", length=spec.text_tokens),
    )
    return Model(spec, network, vae, text)


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
    """Room for the parameters of a module that was built without any.

    Not `to` and `to_empty`: on modules without room these import torch's compiler, for a second.
    """
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            room = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(layer, name, nn.Parameter(room, requires_grad=False))
    module.eval()


def _fill(
    module: nn.Module, part: str, tensors: Iterator[tuple[str, Tensor]], place: Place
) -> None:
    """Copy every tensor to where it belongs; nothing may be left over or missing.

    A module that has no room yet is only compared.
    """
    parameters = dict(module.named_parameters())
    rows_left = {name: parameter.shape[0] for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, tensor in diffusers_names(tensors):
            found = place(name)
            if found is None or found.parameter not in parameters:
                raise WeightsError(f"{part}: unknown tensor {name}: another architecture")
            target = parameters[found.parameter][found.start : found.end]
            if target.shape != tensor.shape:
                raise WeightsError(
                    f"{part}: {name} is {tuple(tensor.shape)}, the config says"
                    f" {tuple(target.shape)}: weights and config do not belong together"
                )
            target.copy_(tensor)
            rows_left[found.parameter] -= tensor.shape[0]
    lacking = [name for name, rows in rows_left.items() if rows > 0]
    if lacking:
        raise WeightsError(f"{part}: {len(lacking)} tensors missing, like {lacking[0]}")
