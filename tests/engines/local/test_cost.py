"""The cost model: what it is fitted from, what it learns, what it refuses."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve.engines.local.cost import (
    LOADS_MAX,
    Coefficients,
    CostModel,
    Load,
    Shape,
    Timing,
    calibration_shapes,
    fit,
    full,
    load_of,
    of_rates,
)

H200 = of_rates(
    dim=3072,
    blocks=57,
    gemm_flops_per_s=700e12,
    attention_flops_per_s=640e12,
    bytes_per_s=4.3e12,
)


def timed(truth: CostModel, rows_max: int, noise: float = 0.0, seed: int = 0) -> list[Timing]:
    draw = random.Random(seed)
    loads = [load_of(shapes) for shapes in calibration_shapes(rows_max)]
    return [Timing(load, truth.seconds(load) * (1 + draw.gauss(0, noise))) for load in loads]


@pytest.mark.parametrize(
    ("rows", "ms"),
    # 512, 1024 and 1 MP edit: linears, attention, elementwise, fill and launch added by hand
    [(1536, 38.9), (4608, 121.8), (8704, 264.4)],
)
def test_the_rates_of_an_h200_give_the_step_times_of_flux(rows: int, ms: float) -> None:
    assert CostModel(H200).alone(full(rows)) * 1e3 == pytest.approx(ms, rel=0.01)


def test_loads_add_up_sample_by_sample() -> None:
    assert load_of([Shape(10, 10), Shape(4, 9)]) == Load(samples=2, rows=14, pairs=136)


def test_a_step_without_rows_costs_nothing() -> None:
    assert CostModel(H200).alone(Shape(0, 0)) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Coefficients,
        fixed=st.floats(1e-5, 1e-1),
        per_sample=st.floats(0, 1e-2),
        per_row=st.floats(1e-7, 1e-3),
        per_pair=st.floats(0, 1e-7),
    ),
    st.integers(512, 32768),
)
def test_a_fit_of_clean_timings_predicts_other_loads(truth: Coefficients, rows_max: int) -> None:
    model = CostModel.fitted(timed(CostModel(truth), rows_max))
    for load in (load_of([full(rows_max // 3)]), load_of([full(rows_max // 7)] * 3)):
        assert model.seconds(load) == pytest.approx(CostModel(truth).seconds(load), rel=1e-3)
    assert model.error < 1e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_three_percent_of_noise_stay_a_few_percent_of_error(seed: int) -> None:
    model = CostModel.fitted(timed(CostModel(H200), 9216, noise=0.03, seed=seed))
    for rows in (1536, 2560, 4608, 8704):
        assert model.alone(full(rows)) == pytest.approx(CostModel(H200).alone(full(rows)), rel=0.12)
    assert min(model.coefficients) >= 0


def test_a_wrong_prior_is_forgotten_within_some_steps() -> None:
    truth = CostModel(H200)
    model = CostModel(Coefficients(*(value * 3 for value in H200)))
    draw = random.Random(1)
    for _ in range(100):
        load = load_of([full(draw.choice([1536, 2560, 4608, 8704]))])
        model.observe(load, truth.seconds(load))
    for rows in (1536, 4608, 8704):
        assert model.alone(full(rows)) == pytest.approx(truth.alone(full(rows)), rel=0.05)


def test_one_shape_alone_scales_the_others_along() -> None:
    model = CostModel(H200)
    before = model.alone(full(8704))
    load = load_of([full(1536)])
    for _ in range(50):
        model.observe(load, 2 * CostModel(H200).seconds(load))
    assert model.alone(full(8704)) == pytest.approx(2 * before, rel=0.1)


def test_a_single_hiccup_moves_predictions_little() -> None:
    model = CostModel.fitted(timed(CostModel(H200), 9216))
    load = load_of([full(4608)])
    expected = model.seconds(load)
    model.observe(load, 100 * expected)
    for _ in range(32):
        model.observe(load, expected)
    assert model.seconds(load) == pytest.approx(expected, rel=0.05)


def test_the_error_tells_how_far_late_predictions_were_off() -> None:
    truth = CostModel(H200)
    model = CostModel(H200)
    draw = random.Random(2)
    for _ in range(400):
        load = load_of([full(draw.choice([1536, 4608]))])
        model.observe(load, truth.seconds(load) * draw.choice([0.9, 1.1]))
    assert 0.05 < model.error < 0.15


def test_only_so_many_loads_are_remembered() -> None:
    model = CostModel(H200)
    for rows in range(16, 16 + 3 * LOADS_MAX):
        model.observe(load_of([full(rows)]), 0.01)
    assert len(model._remembered) == LOADS_MAX


def test_predictions_change_only_with_the_version() -> None:
    model = CostModel(H200)
    load = load_of([full(4608)])
    for _ in range(40):
        version, seconds = model.version, model.seconds(load)
        model.observe(load, 0.2)
        assert model.seconds(load) == seconds or model.version > version


@pytest.mark.parametrize(
    "bad", [[], [Timing(Load(1, 10, 100), 0.0)], [Timing(Load(1, 10, 100), -1.0)]]
)
def test_a_fit_refuses_timings_that_say_nothing(bad: list[Timing]) -> None:
    with pytest.raises(ValueError, match="timings"):
        fit(bad)


def test_a_step_that_took_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="measured_s"):
        CostModel(H200).observe(Load(1, 10, 100), 0.0)


def test_negative_coefficients_are_refused() -> None:
    with pytest.raises(ValueError, match="coefficients"):
        CostModel(Coefficients(0.1, 0.0, -1.0, 0.0))


def test_calibration_needs_room_for_its_shapes() -> None:
    with pytest.raises(ValueError, match="rows_max"):
        calibration_shapes(8)
    assert len(calibration_shapes(9216)) == 12
    assert max(load_of(shapes).rows for shapes in calibration_shapes(9216)) == 9216
