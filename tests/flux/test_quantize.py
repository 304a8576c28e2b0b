"""8-bit linears: what they round, that rows do not feel each other, how far a picture moves."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fluxserve.flux import packed, sample
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.modules import FluxTransformer
from fluxserve.flux.packed import Row
from fluxserve.flux.quantize import (
    FP8_MAX,
    Fp8Linear,
    can,
    check,
    quantize,
    quantize_rows,
    reference,
    ways,
)
from fluxserve.flux.skips import Linears
from fluxserve.flux.spec import TransformerSpec
from fluxserve.flux.weights import Model, load
from tests.flux.conftest import Asked, Pair, ask, pair

SPEC = TransformerSpec(
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=48,
    pooled_projection_dim=24,
    guidance_embeds=True,
    axes_dims_rope=(8, 12, 12),
)


def linear(inputs: int = 64, outputs: int = 48, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).requires_grad_(False)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_a_quantized_row_is_within_a_sixteenth_of_each_value(seed: int, size: float) -> None:
    x = draw(4, 32, seed=seed) * size
    values, scales = quantize_rows(x)
    back = values.float() * scales
    # Three bits after the first: half a step is 1/16; near zero a step is 2^-9 of the scale.
    assert ((back - x).abs() <= x.abs() / 16 + scales * 2**-10).all()
    assert values.float().abs().amax(dim=1).eq(FP8_MAX).all()


def test_rows_of_zeros_and_of_huge_values_stay_numbers() -> None:
    x = torch.zeros(3, 16)
    x[1] = 3e38
    values, scales = quantize_rows(x)
    assert scales.isfinite().all()
    assert values.float().isfinite().all()
    assert values[0].float().eq(0).all()


def test_a_linear_is_the_product_of_its_8_bit_values() -> None:
    layer, x = linear(), draw(5, 64)
    quantized = Fp8Linear(layer)
    values, scales = quantize_rows(x)
    # One multiplication after the other, in whole numbers of 2^-18: no rounding at all.
    units = 2**9
    a = (values.double() * units).long()
    b = (quantized.weight.double() * units).long()
    whole = torch.stack([(row[None] * b).sum(dim=1) for row in a])
    exact = whole.double() / units**2
    exact = exact * scales.double() * quantized.scales.double().t() + layer.bias.double()
    found = reference(values, scales, quantized.weight, quantized.scales, quantized.bias)
    assert torch.equal(found, exact)
    assert torch.equal(quantized(x), exact.float())


def test_the_kernel_computes_what_the_reference_does() -> None:
    # Torch has the kernel for CPUs too: it proves the layout of the call, not the speed on a GPU.
    quantized = Fp8Linear(linear(256, 64))
    values, scales = quantize_rows(draw(7, 256))
    exact = reference(values, scales, quantized.weight, quantized.scales, quantized.bias)
    found = quantized._kernel(values, scales, torch.bfloat16)
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-7, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(1e-3, 1e4))
def test_no_row_feels_what_else_is_in_the_batch(counts: list[int], loud: float) -> None:
    quantized = Fp8Linear(linear())
    sizes = [loud if at % 2 else 1.0 for at in range(len(counts))]
    parts = [draw(n, 64, seed=at) * sizes[at] for at, n in enumerate(counts)]
    together = quantized(torch.cat(parts))
    for part, found in zip(parts, together.split(counts), strict=True):
        assert torch.equal(found, quantized(part))


def test_the_error_of_a_linear_is_a_few_percent() -> None:
    layer, x = linear(1024, 256), draw(32, 1024)
    exact, found = layer(x), Fp8Linear(layer)(x)
    assert 0.001 < (found - exact).norm() / exact.norm() < 0.05


def test_sizes_that_no_kernel_takes_are_refused() -> None:
    with pytest.raises(WeightsError, match="multiples of 16"):
        Fp8Linear(linear(40, 48))


# --- the transformer ------------------------------------------------------------------------------


def velocities(models: Pair, *several: Asked) -> list[Tensor]:
    rows: list[Row] = [models.row(asked) for asked in several]
    return packed.forward(models.ours, rows)


def test_large_linears_are_replaced_and_the_others_stay() -> None:
    model = quantize(FluxTransformer(SPEC))
    kinds = {
        name: type(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Fp8Linear)
    }
    replaced = {name for name, kind in kinds.items() if kind is Fp8Linear}
    assert len(replaced) == 2 * 8 + 2 * 2
    assert {name.rpartition(".")[2] for name in replaced} == {"qkv", "out", "up", "down", "fused"}
    assert not {"image_in", "text_in", "modulation", "out", "time.up"} & replaced
    assert model.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_requests_equal_each_alone_in_8_bits_too(dtype: torch.dtype) -> None:
    models = pair(SPEC, dtype)
    quantize(models.ours)
    several = [
        ask(SPEC, (4, 6), text=12, references=[(3, 4)], dtype=dtype, seed=1),
        ask(SPEC, (2, 2), text=12, sigma=0.9, guidance=1.0, dtype=dtype, seed=2),
        ask(SPEC, (6, 4), text=7, sigma=0.1, dtype=dtype, seed=3),
    ]
    for asked, found in zip(several, velocities(models, *several), strict=True):
        (alone,) = velocities(models, asked)
        if dtype is torch.bfloat16:
            assert torch.equal(found, alone)
        else:
            torch.testing.assert_close(found, alone, rtol=0, atol=2e-3)


def test_a_velocity_moves_by_a_few_percent() -> None:
    exact, rounded = pair(SPEC), pair(SPEC)
    quantize(rounded.ours)
    asked = ask(SPEC, (6, 6), text=12, references=[(4, 4)])
    (a,), (b,) = velocities(exact, asked), velocities(rounded, asked)
    assert 0.001 < (a - b).norm() / a.norm() < 0.1


def paint(model: Model) -> Tensor:
    """(3, H, W), -1 .. 1, in eight steps: a thing it knows, for of others rounding makes others."""
    side = model.spec.native_size or 64
    condition = sample.condition(
        model, prompt="a taxi", width=side, height=side, num_steps=8, guidance=3.0
    )
    made = sample.begin(model, condition, seed=7)
    while not made.is_done:
        sample.advance(model, [made])
    return sample.finish(model, made)


def test_the_small_model_paints_nearly_the_same_picture(
    embedded: Model, embedded_folder: Path
) -> None:
    rounded = load(embedded_folder, device="cpu", dtype="float32")
    quantize(rounded.transformer)
    exact, found = paint(embedded).float(), paint(rounded).float()
    noise = (exact - found).square().mean()
    psnr = 10 * torch.log10((exact.max() - exact.min()) ** 2 / noise)
    assert noise > 0
    assert psnr > 30  # a narrow model: 35 to 39 dB at 128 px


def test_a_device_has_the_kernel_if_a_small_product_comes_out_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")

    def wrong(values: Tensor, scales: Tensor, *_: Tensor) -> Tensor:
        return values.bfloat16() * scales

    device = torch.device("cpu")  # torch has the kernel for it
    for kernel, answer in ((None, True), (refused, False), (wrong, False)):
        with monkeypatch.context() as patched:
            if kernel is not None:
                patched.setattr("fluxserve.flux.quantize.kernel", kernel)
            assert can.__wrapped__(device) is answer


def test_a_gpu_without_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxserve.flux.quantize.can", lambda device: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    with pytest.raises(WeightsError, match=r"no 8-bit .* works on Tesla T4; use bfloat16"):
        check(torch.device("cuda"))
    with pytest.raises(WeightsError, match="Tesla T4"):
        ways("fp8", "auto", torch.device("cuda"))
    assert ways("bfloat16", "auto", torch.device("cuda")) == (Linears.EXACT,)
    monkeypatch.setattr("fluxserve.flux.quantize.can", lambda device: True)
    assert ways("bfloat16", "auto", torch.device("cuda")) == (Linears.BOTH, Linears.EXACT)


def test_a_cpu_has_the_reference_and_other_devices_are_refused() -> None:
    check(torch.device("cpu"))
    with pytest.raises(WeightsError, match="mps has no 8-bit"):
        check(torch.device("mps"))
