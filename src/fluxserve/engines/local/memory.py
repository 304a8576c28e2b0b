"""What a model needs on its device, worked out before anything is loaded, and what to do about it.

all parts, large linears also in 8 bits? -> without those? -> text encoders streamed from main
memory? -> refused, with the numbers
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.encoders import ClipText, T5Encoder, text_dtype
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.modules import FluxTransformer
from fluxserve.flux.quantize import can, large
from fluxserve.flux.skips import Linears
from fluxserve.flux.spec import ModelSpec

GIB = 2**30
# Values of one row that are alive at once in a single-stream block, in widths of the model: input,
# norm, fused linear (7), turned query and key, in float32 while they turn (2 + 4), attention, GELU
# (4), joined (5), output.
ROW_WIDTHS = 26
# What must fit whatever the budget is: an edit at this size with one reference.
SIDE = 1024  # px
PIXEL_COPIES = 3  # tensors of the widest full-size layer of the VAE that are alive at once
STEPS = 28  # whose modulation a request keeps
# The device's own needs: context, kernels, cuBLAS workspaces, and holes between tensors.
CONTEXT_BYTES = {"cuda": GIB, "mps": GIB // 2, "cpu": GIB // 4}
HOLES = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How a model will be placed."""

    transformer_bytes: int
    text_bytes: int
    vae_bytes: int
    work_bytes: int  # of the widest step, of decoding, of what requests keep
    linears: Linears  # how the large ones of the transformer are kept
    streams_text: bool  # text encoders stay in main memory
    device_bytes: int  # on the device, all in all
    free_bytes: int
    lacks_twins: bool = False  # 8-bit copies were wished for and have no room

    @property
    def sentence(self) -> str:
        """For the log."""
        text = "text encoders streamed from main memory" if self.streams_text else "all of it there"
        linears = {
            Linears.EXACT: "linears exact only",
            Linears.FP8: "linears in 8 bits only",
            Linears.BOTH: "linears exact and in 8 bits",
        }[self.linears]
        if self.lacks_twins:
            linears += " (no room for 8-bit copies beside them)"
        there = f"{_gib(self.device_bytes)} of {_gib(self.free_bytes)}"
        return f"{there} on the device, {text}, {linears}"


def plan(
    spec: ModelSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    linears: Sequence[Linears],
    rows_max: int,
    requests_max: int,
    free_bytes: int | None = None,
    host_bytes: int | None = None,
) -> MemoryPlan:
    """Place a model on a device with so much room; by default what is free there right now.

    `linears` are the ways in which the large ones may be kept, the one liked best first: a later
    one is taken where the first does not fit, and before text encoders have to be streamed. Raises
    WeightsError with what is needed and what is free when the last does not fit in any way.
    """
    free = device_bytes(device) if free_bytes is None else free_bytes
    host = available_bytes() if host_bytes is None else host_bytes
    with torch.device("meta"):
        network, vae = FluxTransformer(spec.transformer), Autoencoder(spec.autoencoder)
        texts: tuple[nn.Module, ...] = (ClipText(spec.clip), T5Encoder(spec.t5))
    size = dtype.itemsize
    transformers = {kind: _transformer_bytes(network, size, kind) for kind in linears}
    text_size = text_dtype(dtype).itemsize
    text, decoder = sum(_count(part) for part in texts) * text_size, _count(vae) * size
    kept = _kept_bytes(texts, text_size, device)
    work = _work_bytes(spec, size, rows_max, requests_max)
    window = 2 * max(_largest(part) for part in texts) * text_size
    own = CONTEXT_BYTES.get(device.type, GIB)
    last = linears[-1]
    # Text encoders are streamed for no sake but that of the last: every prompt would feel it.
    for kind, streams in [*((kind, False) for kind in linears), (last, True)]:
        transformer = transformers[kind]
        resident = transformer + decoder + work + (window if streams else text)
        needed = int(resident * (1 + HOLES)) + own
        is_possible = not streams or (device.type != "cpu" and kept <= host)
        if needed <= free and is_possible:
            return MemoryPlan(
                transformer_bytes=transformer,
                text_bytes=text,
                vae_bytes=decoder,
                work_bytes=work,
                linears=kind,
                streams_text=streams,
                device_bytes=needed,
                free_bytes=free,
                lacks_twins=Linears.BOTH in linears and kind is not Linears.BOTH,
            )
    least = transformers[last] + decoder + work + (text if device.type == "cpu" else window)
    least = int(least * (1 + HOLES)) + own
    raise WeightsError(_refusal(spec, device, least, free, kept, host, linears=last))


def _refusal(
    spec: ModelSpec,
    device: torch.device,
    least: int,
    free: int,
    text: int,
    host: int,
    *,
    linears: Linears,
) -> str:
    if device.type != "cpu" and least <= free:
        return (
            f"{spec.name}: its text encoders need {_gib(text)} of main memory beside the {device},"
            f" {_gib(host)} are free"
        )
    advice = "free some memory or choose a smaller model"
    if linears is Linears.BOTH:
        advice = "without 8-bit copies of the linears (engine.fp8) it needs less"
    elif linears is Linears.EXACT and device.type == "cuda" and can(device):
        advice = f"fp8 weights need half; otherwise {advice}"
    return f"{spec.name} needs {_gib(least)} on {device}, {_gib(free)} are free; {advice}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _largest(module: nn.Module) -> int:
    """Values of the largest layer."""
    return max(
        sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        for layer in module.modules()
    )


def _kept_bytes(parts: Sequence[nn.Module], size: int, device: torch.device) -> int:
    """Main memory of weights that only visit the device.

    For CUDA it is pinned, where torch rounds every tensor up to a power of two.
    """
    sizes = [parameter.numel() * size for part in parts for parameter in part.parameters()]
    if device.type == "cuda":
        sizes = [1 << (each - 1).bit_length() for each in sizes]
    return sum(sizes)


def _transformer_bytes(network: FluxTransformer, size: int, linears: Linears) -> int:
    """Bytes of the transformer; an 8-bit weight has a float32 scale for every output beside it."""
    layers = large(network).values()
    exact = _count(network) * size
    if linears is Linears.EXACT:
        return exact
    in_8_bits = sum(layer.weight.numel() + 4 * layer.out_features for layer in layers)
    if linears is Linears.BOTH:
        return exact + in_8_bits
    return exact - sum(layer.weight.numel() * size for layer in layers) + in_8_bits


def _work_bytes(spec: ModelSpec, size: int, rows: int, requests: int) -> int:
    width, vae = spec.transformer.width, spec.autoencoder
    side = spec.native_size or SIDE
    rows_min = spec.text_tokens + 2 * spec.tokens(side, side)
    of_step = max(rows, rows_min) * ROW_WIDTHS * width * size
    of_decoding = side * side * PIXEL_COPIES * max(vae.block_out_channels[:2]) * size
    parts = 12 * spec.transformer.num_layers + 3 * spec.transformer.num_single_layers + 2
    kept = STEPS * parts * width * size + rows_min * spec.transformer.attention_head_dim * 4
    return of_step + of_decoding + requests * kept


# --- what is there ------------------------------------------------------------------------------


def device_bytes(device: torch.device) -> int:
    """Free memory of a device, right now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
    return available_bytes()


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Main memory that can be used without swapping: of the machine, and of the container.

    Pages of files count as used there until somebody needs the room, so they count as free here:
    otherwise the weights that were just read would leave no room for themselves.
    """
    known = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                known = int(line.split()[1]) * 1024
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return known
    return min(known, limit - max(0, used - _file_bytes(cgroup / "memory.stat")))


def _file_bytes(stat: Path) -> int:
    """Bytes of files that a container keeps in memory and can drop at any time."""
    try:
        lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
    except OSError:
        return 0
    return sum(int(line[1]) for line in lines if line[0] in ("inactive_file", "active_file"))
