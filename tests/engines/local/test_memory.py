"""The memory plan: everything on the device, text encoders beside it, or a refusal with numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fluxserve.engines.local.memory import (
    GIB,
    MemoryPlan,
    available_bytes,
    device_bytes,
    plan,
)
from fluxserve.flux import folder
from fluxserve.flux.folder import WeightsError
from fluxserve.flux.skips import Linears
from fluxserve.flux.spec import ModelSpec, TransformerSpec

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
KONTEXT = ModelSpec(
    name="FLUX.1-Kontext-dev",
    transformer=TransformerSpec(guidance_embeds=True),
    guidance=folder.inspect(folder.embedded_folder()).guidance,
    text_tokens=512,
    edits=True,
    num_steps=28,
    guidance_scale=3.5,
    guidance_scale_edit=2.5,
)


def place(
    free_gib: float,
    *,
    device: torch.device = CUDA,
    linears: Sequence[Linears] = (Linears.EXACT,),
    host_gib: float = 64.0,
    rows_max: int = 6144,
    dtype: torch.dtype = torch.bfloat16,
    spec: ModelSpec = KONTEXT,
) -> MemoryPlan:
    return plan(
        spec,
        device=device,
        dtype=dtype,
        linears=linears,
        rows_max=rows_max,
        requests_max=16,
        free_bytes=int(free_gib * GIB),
        host_bytes=int(host_gib * GIB),
    )


def test_the_parts_of_flux_are_as_large_as_published() -> None:
    found = place(139)
    assert found.transformer_bytes == 2 * 11_901_408_320
    assert found.text_bytes == 2 * (4_762_310_656 + 123_060_480)
    assert found.vae_bytes == 2 * 83_819_683
    assert not found.streams_text


def test_eight_bits_halve_what_steps_read() -> None:
    exact, rounded = place(139), place(139, linears=[Linears.FP8])
    # 57 blocks of 12 widths squared, twice for the two streams of the first 19.
    large = 12 * 3072**2 * (57 + 19)
    assert exact.transformer_bytes - rounded.transformer_bytes == pytest.approx(large, rel=0.01)


WISHED = (Linears.BOTH, Linears.EXACT)


def test_8_bit_copies_are_kept_where_they_have_room() -> None:
    exact, both = place(139), place(139, linears=WISHED)
    large = 12 * 3072**2 * (57 + 19)
    assert both.linears is Linears.BOTH
    assert both.transformer_bytes - exact.transformer_bytes == pytest.approx(large, rel=0.01)
    assert both.sentence.endswith("on the device, all of it there, linears exact and in 8 bits")
    assert exact.sentence.endswith("all of it there, linears exact only")


def test_8_bit_copies_give_way_before_text_encoders_do() -> None:
    found = place(44, linears=WISHED)
    assert (found.linears, found.streams_text) == (Linears.EXACT, False)
    assert "no room for 8-bit copies" in found.sentence
    assert place(34, linears=WISHED).streams_text


def test_8_bit_copies_that_must_be_there_are_refused_without_room() -> None:
    assert place(44, linears=[Linears.BOTH]).streams_text
    with pytest.raises(WeightsError, match=r"34\.0 GiB are free; without 8-bit copies .*needs"):
        place(34, linears=[Linears.BOTH])


def test_text_encoders_give_way_when_the_device_is_too_small_for_all() -> None:
    found = place(34)
    assert found.streams_text
    assert found.device_bytes <= found.free_bytes
    assert "streamed from main memory" in found.sentence
    assert place(24, linears=[Linears.FP8]).streams_text


@pytest.mark.parametrize(("has_kernel", "advice"), [(True, "fp8 weights"), (False, "free some")])
def test_a_device_that_is_too_small_is_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch, has_kernel: bool, advice: str
) -> None:
    monkeypatch.setattr("fluxserve.engines.local.memory.can", lambda device: has_kernel)
    told = rf"needs \d\d\.\d GiB on cuda, 24\.0 GiB are free; {advice}"
    with pytest.raises(WeightsError, match=told):
        place(24)
    with pytest.raises(WeightsError, match=r"8\.0 GiB are free; free some memory"):
        place(8, linears=[Linears.FP8])


def test_text_encoders_need_main_memory_instead() -> None:
    # 9.1 GiB of values; T5's large layers of 80 MiB each are 128 MiB once they are pinned.
    with pytest.raises(WeightsError, match=r"need 12\.7 GiB of main memory .* 10\.0 GiB are free"):
        place(34, host_gib=10)
    assert place(34, host_gib=13).streams_text


def test_memory_that_is_not_pinned_holds_just_the_values() -> None:
    with pytest.raises(WeightsError, match=r"need 9\.1 GiB of main memory .* 4\.0 GiB are free"):
        place(34, host_gib=4, device=torch.device("mps"))


def test_in_8_bits_only_the_transformer_needs_no_main_memory() -> None:
    assert place(40, linears=[Linears.FP8], host_gib=1).linears is Linears.FP8


def test_text_encoders_beside_half_precision_are_twice_as_large() -> None:
    short, half = place(139), place(139, dtype=torch.float16)
    assert half.text_bytes == 2 * short.text_bytes
    assert half.transformer_bytes == short.transformer_bytes


def test_on_a_cpu_there_is_nowhere_else_to_put_anything() -> None:
    assert not place(64, device=CPU).streams_text
    with pytest.raises(WeightsError, match=r"on cpu, 34\.0 GiB are free; free some memory"):
        place(34, device=CPU)


def test_a_wider_step_needs_more() -> None:
    small, large = place(139), place(139, rows_max=40_000)
    assert large.work_bytes - small.work_bytes == (40_000 - 8704) * 26 * 3072 * 2


def test_the_model_of_the_package_fits_anywhere() -> None:
    spec = folder.inspect(folder.embedded_folder())
    assert place(1, device=CPU, spec=spec).device_bytes < GIB
    with pytest.raises(WeightsError, match=r"0\.2 GiB are free"):
        place(0.2, device=CPU, spec=replace(spec, name="other"))


def test_what_is_free_here_is_counted() -> None:
    assert GIB // 8 < device_bytes(CPU) == pytest.approx(available_bytes(), rel=0.2)
    with pytest.raises(WeightsError):
        plan(KONTEXT, device=CPU, dtype=torch.float32, linears=[Linears.EXACT], rows_max=10**9,
             requests_max=1)  # fmt: skip


def test_a_container_with_a_limit_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:    4000000 kB\n")
    assert available_bytes(meminfo, tmp_path) == 4_000_000 * 1024
    (tmp_path / "memory.max").write_text("2000\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert available_bytes(meminfo, tmp_path) == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 4_000_000 * 1024
