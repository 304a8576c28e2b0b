"""Requests that join, pause and leave between steps, in any order: each ends as it would alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fluxserve.flux import packing, sample, schedule
from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.prepare import Adapter, LowRank, Prepared, prepare
from fluxserve.flux.sample import Condition, Repaint, Sample
from fluxserve.flux.skips import refresh_map, skip_map
from fluxserve.flux.spec import tiny
from fluxserve.flux.weights import Model
from tests.flux.conftest import pair

SPEC = tiny()
# Relative to the largest value of the latents: units in the last place of float32.
FLOAT32_CLOSE = 1e-6
# A last digit that differs may bring a value in 8 bits to its neighbour, a sixteenth away.
COARSE_CLOSE = 0.05


@dataclass(frozen=True, slots=True)
class Kind:
    """What distinguishes one request from another."""

    size: tuple[int, int]  # tokens
    steps: int
    text: int = 8
    references: tuple[tuple[int, int], ...] = ()
    guidance: float = 3.0
    is_guided_twice: bool = False
    is_masked: bool = False
    has_lora: bool = False
    skips: bool = False
    reuses: bool = False


EDIT = ((4, 4),)
KINDS = (
    Kind((4, 4), 4, text=16, references=EDIT),
    Kind((4, 6), 3, guidance=2.0),
    Kind((4, 4), 6, text=16, references=EDIT, reuses=True),
    Kind((4, 4), 9, text=16, references=EDIT, skips=True),
    Kind((4, 4), 9, text=16, references=EDIT, skips=True, reuses=True),
    Kind((2, 6), 5, references=((4, 4), (2, 2)), is_guided_twice=True, reuses=True),
    Kind((4, 4), 4, text=16, references=EDIT, is_masked=True),
    Kind((6, 2), 3, has_lora=True),
    Kind((4, 4), 5, text=16, references=EDIT, has_lora=True, reuses=True),
)


class House(NamedTuple):
    """A random model, what every kind of request is made from, and how it ends alone."""

    model: Model
    conditions: Sequence[Condition]
    alone: Sequence[Tensor]


def drawn(chance: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=chance).to(dtype)


def lora(chance: torch.Generator, dtype: torch.dtype) -> Adapter:
    width = SPEC.transformer.width

    def delta(outputs: int) -> LowRank:
        down, up = drawn(chance, width, 4), drawn(chance, 4, outputs)
        return LowRank((down * 0.1).to(dtype), (up * 0.1).to(dtype), 0.7)

    layers = {"doubles.0.image.qkv": 3, "doubles.1.text.up": 4, "doubles.0.image.modulation": 6}
    layers |= {"singles.0.fused": 7, "singles.1.fused": 7}
    return {name: [delta(times * width)] for name, times in layers.items()}


def condition_of(model: Model, kind: Kind, seed: int) -> Condition:
    chance = torch.Generator().manual_seed(seed)
    spec, dtype = SPEC.transformer, model.dtype
    tokens = sum(height * width for height, width in kind.references)
    places = [packing.text_positions(kind.text), packing.grid_positions(*kind.size)]
    reference = drawn(chance, tokens, spec.in_channels) if tokens else None
    sigmas = schedule.sigmas(kind.steps, 64, SPEC.schedule)

    def row() -> Prepared:
        return prepare(
            model.transformer,
            text=drawn(chance, kind.text, spec.joint_attention_dim),
            pooled=drawn(chance, spec.pooled_projection_dim),
            positions=torch.cat([*places, packing.reference_positions(kind.references)]),
            sigmas=sigmas[:-1],
            guidance=kind.guidance,
            reference=reference,
            adapters=[lora(chance, dtype)] if kind.has_lora else [],
        )

    area = (kind.size[0] * kind.size[1], spec.in_channels)
    there = drawn(chance, *area, dtype=dtype)
    mask = (drawn(chance, *area) > 0).to(dtype)
    computed = skip_map(kind.steps) if kind.skips else (True,) * kind.steps
    return Condition(
        height=kind.size[0],
        width=kind.size[1],
        sigmas=sigmas,
        prompted=row(),
        unprompted=row() if kind.is_guided_twice else None,
        guidance=1.5,
        repaint=Repaint(there, mask) if kind.is_masked else None,
        computed=computed if kind.skips else (),
        refreshed=refresh_map(computed) if kind.reuses else (),
    )


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def house(request: pytest.FixtureRequest, embedded: Model) -> House:
    network = pair(SPEC.transformer, request.param).ours
    model = Model(SPEC, network, Autoencoder(SPEC.autoencoder), embedded.text)
    with torch.inference_mode():
        conditions = [condition_of(model, kind, at) for at, kind in enumerate(KINDS)]
        alone = [alone_on(model, condition, at) for at, condition in enumerate(conditions)]
    return House(model, conditions, alone)


def assert_as_alone(house: House, at: int, made: Sample) -> None:
    expected = house.alone[at]
    if expected.dtype is torch.bfloat16:
        assert torch.equal(made.latents, expected)
    else:
        error = (made.latents - expected).abs().max() / expected.abs().max()
        is_coarse = house.conditions[at].is_coarse
        assert float(error) <= (COARSE_CLOSE if is_coarse else FLOAT32_CLOSE)


def play(house: House, arrivals: list[tuple[int, int]], leavers: set[int], chance: Random) -> None:
    """Each turn some of those that are there take a step, in any order; a leaver never ends."""
    ended = 0
    waiting = list(enumerate(arrivals))
    running: list[tuple[int, int, Sample]] = []
    for turn in count():
        for name, (kind, _) in [one for one in waiting if one[1][1] <= turn]:
            running.append((name, kind, sample.begin(house.model, house.conditions[kind], kind)))
        waiting = [one for one in waiting if one[1][1] > turn]
        if not waiting and not running:
            break
        running = [one for one in running if one[0] not in leavers or chance.random() < 0.7]
        if not running:
            continue
        chosen = chance.sample(running, chance.randint(1, len(running)))
        sample.advance(house.model, [made for _, _, made in chosen])
        for _, kind, made in running:
            if made.is_done:
                assert_as_alone(house, kind, made)
                ended += 1
        running = [one for one in running if not one[2].is_done]
    assert ended >= len(arrivals) - len(leavers)


def alone_on(model: Model, condition: Condition, seed: int) -> Tensor:
    """The latents at the end of a run without company."""
    made = sample.begin(model, condition, seed)
    while not made.is_done:
        sample.advance(model, [made])
    return made.latents


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 8)), min_size=1, max_size=7
    ),
    leavers=st.sets(st.integers(0, 6), max_size=2),
    chance=st.randoms(use_true_random=False),
)
def test_whoever_joins_pauses_or_leaves_each_request_ends_as_alone(
    house: House, arrivals: list[tuple[int, int]], leavers: set[int], chance: Random
) -> None:
    play(house, arrivals, leavers, chance)


def test_all_kinds_at_once_end_as_alone(house: House) -> None:
    made = [
        sample.begin(house.model, condition, at) for at, condition in enumerate(house.conditions)
    ]
    while running := [one for one in made if not one.is_done]:
        sample.advance(house.model, running)
    for at, one in enumerate(made):
        assert_as_alone(house, at, one)


def test_reused_references_are_those_of_the_last_refresh_and_change_the_result(
    house: House,
) -> None:
    """With every step a refresh nothing is approximated; otherwise something is."""
    condition = house.conditions[2]
    assert condition.refreshed == (True, False) * 3
    ends = []
    for refreshed in ((True,) * 6, (), condition.refreshed):
        kind = replace(condition, refreshed=refreshed)
        made = sample.begin(house.model, kind, 2)
        while not made.is_done:
            sample.advance(house.model, [made])
        ends.append(made.latents)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])
    assert float((ends[1] - ends[2]).abs().max() / ends[1].abs().max()) < 0.2


def test_a_step_that_failed_can_be_tried_again(house: House) -> None:
    """A neighbour without numbers spoils the step of one that refreshes; nothing is lost."""
    good = sample.begin(house.model, house.conditions[2], 2)
    bad = sample.begin(house.model, house.conditions[1], 1)
    bad.latents = torch.full_like(bad.latents, float("nan"))
    for _ in range(good.num_steps):
        with pytest.raises(sample.NotANumber):
            sample.advance(house.model, [bad, good])
        sample.advance(house.model, [good])
    assert_as_alone(house, 2, good)
