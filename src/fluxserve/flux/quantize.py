"""8-bit linears with one scale per row: for weights per output, for activations per token.

    x (N, n_in) ── amax of each row ──> x8 (e4m3), scale (N, 1) ─┐
                                weight8 (n_out, n_in), scale ────┴─> x8 @ weight8.T, scaled, + bias

A token's scale depends on that token alone, so no request feels another one in the same forward
(one scale for a whole tensor, as is common, would let the loudest neighbour choose it).

`quantize` leaves only the 8-bit layers; `twin` keeps them beside the exact ones, so that in one
forward the rows of some requests go through these and the rows of the others through those.

On CUDA the product is one kernel with fast accumulation. Elsewhere it is computed from the very
same 8-bit values in float64, where a sum of up to 2^16 products is exact: slow, and the arithmetic
that the kernel approximates. Tests compare with that; the kernel itself they never ran on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from fluxserve.flux.folder import WeightsError
from fluxserve.flux.modules import FluxTransformer
from fluxserve.flux.skips import FP8 as NAME
from fluxserve.flux.skips import Linears

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest e4m3 value
SCALE_MIN = 1e-12  # of a row of zeros, so that nothing is divided by zero
ALIGN = 16  # inputs and outputs must be multiples of it
BLOCKS = ("doubles.", "singles.")
# The layers of the blocks that hold 99 % of the work of a step; all others stay as they are.
STREAM_LAYERS = ("qkv", "out", "up", "down")
SINGLE_LAYERS = ("fused", "out")
TRIAL_SIZE = 256  # of the product that shows whether a device has the kernel
TRIAL_ERROR = 2**-4  # relative to the spread of its values; rounding to bfloat16 is 2^-6 of it


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, n) -> e4m3 values (N, n) and float32 scales (N, 1): x is about values * scales."""
    wide = x.float()
    scales = (wide.abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp_min(SCALE_MIN)
    return (wide / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


class Fp8Linear(nn.Module):
    """A linear layer with 8-bit weights that also reads its input in 8 bits."""

    def __init__(self, layer: nn.Linear) -> None:
        """Takes over the values of `layer`. Raises WeightsError for sizes that no kernel takes."""
        super().__init__()
        if layer.in_features % ALIGN or layer.out_features % ALIGN:
            raise WeightsError(
                f"fp8: a linear of {layer.in_features} x {layer.out_features} cannot be quantized,"
                f" both must be multiples of {ALIGN}"
            )
        values, scales = quantize_rows(layer.weight)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", values)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", layer.bias.detach())
        self.weight: Tensor  # (n_out, n_in), e4m3
        self.scales: Tensor  # (n_out, 1), float32
        self.bias: Tensor  # (n_out,)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in) -> (N, n_out), in the dtype of `x`."""
        values, scales = quantize_rows(x)
        if x.device.type == "cuda":
            return self._kernel(values, scales, x.dtype)
        return reference(values, scales, self.weight, self.scales, self.bias).to(x.dtype)

    def _kernel(self, values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        return kernel(values, scales, self.weight, self.scales, self.bias).to(dtype)


class TwinLinear(nn.Module):
    """A linear layer in both forms: some rows go through the exact one, the rest through 8 bits."""

    def __init__(self, layer: nn.Linear, coarse: Fp8Linear | None = None) -> None:
        """Keeps `layer` beside its 8-bit copy, which is made here if it is not there already.

        A bias is shared by both. WeightsError as from `Fp8Linear`.
        """
        super().__init__()
        self.exact, self.coarse = layer, coarse or Fp8Linear(layer)

    def forward(self, x: Tensor, exact: int) -> Tensor:
        """(N, n_in) -> (N, n_out), in the dtype of `x`; the first `exact` rows exactly."""
        if exact == len(x):
            return self.exact(x)  # type: ignore[no-any-return]
        if exact == 0:
            return self.coarse(x)  # type: ignore[no-any-return]
        return torch.cat([self.exact(x[:exact]), self.coarse(x[exact:])])


def kernel(
    values: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor
) -> Tensor:
    """The product in one kernel, where the device has one: bfloat16 (N, n_out)."""
    y: Tensor = torch._scaled_mm(
        values,
        weight.t(),
        scale_a=scales,
        scale_b=weight_scales.t(),
        bias=bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return y


def reference(
    values: Tensor, scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor
) -> Tensor:
    """The same arithmetic without rounding in between: float64 (N, n_out).

    An e4m3 value is a multiple of 2^-9 up to 448, so a product is one of 2^-18 below 2^18, and any
    order of adding 2^16 of them gives the same 52 bits.
    """
    products = values.double() @ weight.double().t()
    return products * scales.double() * weight_scales.double().t() + bias.double()


def quantize(model: FluxTransformer) -> FluxTransformer:
    """Replace the large linears of the blocks in place, where they are; returns `model`.

    Embedders, modulation and the last layer stay: they are small and carry what all rows share.
    """
    for path, layer in large(model).items():
        _replace(model, path, Fp8Linear(layer))
    return model


def twin(model: FluxTransformer) -> FluxTransformer:
    """Put 8-bit copies beside the large linears of the blocks, where they are; returns `model`."""
    for path, layer in large(model).items():
        _replace(model, path, TwinLinear(layer))
    return model


class Rounding:
    """Replaces each large linear of a model that is being read as soon as it is complete.

    So its exact values never lie in memory together: of 22 GiB of FLUX.1, a few layers at a time.
    """

    def __init__(self, model: FluxTransformer, device: torch.device) -> None:
        """The 8-bit linears go to `device`, wherever the exact ones are."""
        self._model, self._device = model, device
        self._lacking = {path: {"weight", "bias"} for path in large(model)}

    def __call__(self, parameter: str) -> None:
        """A parameter of the model has all of its values."""
        path, _, leaf = parameter.rpartition(".")
        lacking = self._lacking.get(path)
        if lacking is None:
            return
        lacking.discard(leaf)
        if not lacking:
            layer = self._model.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            _replace(self._model, path, Fp8Linear(layer.to(self._device)))


def large(model: FluxTransformer) -> Mapping[str, nn.Linear]:
    """The large linears of the blocks that are exact, by their names in the model."""
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and path.startswith(BLOCKS)
        and path.rpartition(".")[2] in (*STREAM_LAYERS, *SINGLE_LAYERS)
    }


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    above, _, name = path.rpartition(".")
    setattr(model.get_submodule(above), name, layer)


def ways(dtype: str, twins: str, device: torch.device) -> tuple[Linears, ...]:
    """How the large linears may be kept, by what the settings say; the way liked best first.

    `twins` is `on`, `off`, or `auto`: 8-bit copies where the device has kernels for them and room.
    Raises WeightsError where 8 bits are asked for and cannot be had.
    """
    if dtype == NAME:
        check(device)
        return (Linears.FP8,)
    if twins == "on":
        check(device)
        return (Linears.BOTH,)
    if twins == "auto" and device.type == "cuda" and can(device):
        return Linears.BOTH, Linears.EXACT
    return (Linears.EXACT,)


@cache
def can(device: torch.device) -> bool:
    """Whether a GPU has the 8-bit kernel and computes with it what the reference does.

    It is tried: which GPUs have it differs from one version of torch and CUDA to the next.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        return False
    drawn = torch.randn(2, TRIAL_SIZE, TRIAL_SIZE, generator=torch.Generator().manual_seed(0))
    left, right = (quantize_rows(part) for part in drawn.to(device))
    bias = torch.zeros(TRIAL_SIZE, device=device)
    try:
        error = (kernel(*left, *right, bias) - reference(*left, *right, bias)).abs().amax()
        return bool(error <= TRIAL_ERROR * TRIAL_SIZE**0.5)
    except RuntimeError:
        return False


def check(device: torch.device) -> None:
    """Raise WeightsError where `device` has no 8-bit kernels; a CPU has the slow reference."""
    if device.type == "cpu":
        return
    if device.type != "cuda":
        raise WeightsError(f"fp8: {device.type} has no 8-bit matrix products; use bfloat16")
    if not can(device):
        raise WeightsError(
            f"fp8: torch {torch.__version__} has no 8-bit matrix product with a scale for every"
            f" row that works on {torch.cuda.get_device_name(device)}; use bfloat16"
        )
