"""Exact requests and such in 8 bits in one forward: each ends as in a model of its kind alone."""

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxserve.flux import packed, sample
from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.modules import FluxTransformer
from fluxserve.flux.quantize import Fp8Linear, TwinLinear, quantize, twin
from fluxserve.flux.weights import Model
from tests.flux.conftest import ask, pair
from tests.flux.test_quantize import draw, linear
from tests.flux.test_schedules import (
    COARSE_CLOSE,
    KINDS,
    SPEC,
    House,
    alone_on,
    assert_as_alone,
    condition_of,
    play,
)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def house(request: pytest.FixtureRequest, embedded: Model) -> House:
    """A model with both forms; how requests end alone in models that have only one of them."""

    def model_of(network: FluxTransformer) -> Model:
        return Model(SPEC, network, Autoencoder(SPEC.autoencoder), embedded.text)

    exact = model_of(pair(SPEC.transformer, request.param).ours)
    coarse = model_of(quantize(pair(SPEC.transformer, request.param).ours))
    both = model_of(twin(pair(SPEC.transformer, request.param).ours))
    with torch.inference_mode():
        conditions = [condition_of(exact, kind, at) for at, kind in enumerate(KINDS)]
        rounded = [replace(condition, is_coarse=True) for condition in conditions]
        alone = [alone_on(exact, condition, at) for at, condition in enumerate(conditions)]
        seeds = range(len(KINDS), 2 * len(KINDS))
        alone += [
            alone_on(coarse, condition, at) for at, condition in zip(seeds, rounded, strict=True)
        ]
    return House(both, [*conditions, *rounded], alone)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 2 * len(KINDS) - 1), st.integers(0, 8)), min_size=2, max_size=6
    ),
    leavers=st.sets(st.integers(0, 6), max_size=2),
    chance=st.randoms(use_true_random=False),
)
def test_whoever_shares_a_forward_each_request_has_the_digits_it_asked_for(
    house: House, arrivals: list[tuple[int, int]], leavers: set[int], chance: Random
) -> None:
    play(house, arrivals, leavers, chance)


def test_all_kinds_exact_and_in_8_bits_at_once_end_as_alone(house: House) -> None:
    made = [
        sample.begin(house.model, condition, at) for at, condition in enumerate(house.conditions)
    ]
    while running := [one for one in made if not one.is_done]:
        sample.advance(house.model, running)
    for at, one in enumerate(made):
        assert_as_alone(house, at, one)


def test_8_bits_are_not_the_exact_result(house: House) -> None:
    exact, rounded = (
        alone_on(house.model, replace(house.conditions[0], is_coarse=is_coarse), 0)
        for is_coarse in (False, True)
    )
    error = float((exact - rounded).float().abs().max() / exact.float().abs().max())
    assert 1e-4 < error < 4 * COARSE_CLOSE


@pytest.mark.parametrize("exact", range(6))
def test_a_twin_sends_its_first_rows_through_the_exact_layer(exact: int) -> None:
    layer, x = linear(), draw(5, 64)
    found = TwinLinear(layer)(x, exact)
    assert found.shape == (5, 48)
    torch.testing.assert_close(found[:exact], layer(x)[:exact], rtol=0, atol=1e-6)
    assert torch.equal(found[exact:], Fp8Linear(layer)(x[exact:]))


def test_a_lora_works_beside_either_form(house: House) -> None:
    has_lora = next(at for at, kind in enumerate(KINDS) if kind.has_lora and not kind.references)
    for at in (has_lora, has_lora + len(KINDS)):
        made = sample.begin(house.model, house.conditions[at], at)
        others = [sample.begin(house.model, house.conditions[other], other) for other in (1, 10)]
        while not made.is_done:
            sample.advance(house.model, [made, *(one for one in others if not one.is_done)])
        assert_as_alone(house, at, made)


def test_rows_of_one_kind_cost_no_second_pass() -> None:
    """All exact or all in 8 bits: the last block is cut short as in models of one kind."""
    models = pair(SPEC.transformer, torch.bfloat16)
    asked = ask(SPEC.transformer, (4, 6), text=8, references=[(4, 4)], dtype=torch.bfloat16)
    plain = models.row(asked)
    (expected,) = packed.forward(models.ours, [plain])
    twin(models.ours)
    rows = {"exact": plain, "coarse": replace(plain, is_coarse=True)}
    seen: list[int] = []
    fused = models.ours.singles[-1].get_submodule("fused")
    fused.register_forward_hook(lambda layer, inputs, output: seen.append(len(inputs[0])))
    assert torch.equal(packed.forward(models.ours, [rows["exact"]])[0], expected)
    assert seen == []
    packed.forward(models.ours, [rows["exact"], rows["coarse"]])
    assert len(seen) == 1
