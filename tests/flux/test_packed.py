"""The packed forward against diffusers' transformer, and against itself in other company."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxserve.flux import kernels, packed
from fluxserve.flux.modules import SingleBlock
from fluxserve.flux.packed import Row
from fluxserve.flux.prepare import LowRank
from fluxserve.flux.spec import Guidance, TransformerSpec, tiny
from tests.flux.conftest import Asked, Pair, ask, pair

SPECS = {
    "guidance": tiny().transformer,
    "no guidance": tiny(guidance=Guidance.TRUE_CFG).transformer,
}
# Relative to the largest value: a few units in the last place of float32, after four blocks.
FLOAT32_CLOSE = 1e-6


def mixture(spec: TransformerSpec, dtype: torch.dtype) -> list[Asked]:
    """Sizes, noise levels, guidances, text lengths and references all differ."""
    return [
        ask(spec, (8, 8), text=16, references=[(8, 8)], sigma=0.97, guidance=2.5, dtype=dtype),
        ask(spec, (4, 6), text=8, sigma=0.31, guidance=3.5, seed=1, dtype=dtype),
        ask(spec, (6, 10), text=16, references=[(4, 4), (2, 6)], sigma=0.62, seed=2, dtype=dtype),
        ask(spec, (8, 8), text=16, references=[(8, 8)], sigma=0.5, seed=3, dtype=dtype),
    ]


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", SPECS)
def test_a_mixed_batch_in_bfloat16_equals_diffusers_bit_by_bit(name: str) -> None:
    models = pair(SPECS[name], torch.bfloat16)
    asked = mixture(SPECS[name], torch.bfloat16)
    found = packed.forward(models.ours, [models.row(a) for a in asked])
    for velocity, a in zip(found, asked, strict=True):
        assert torch.equal(velocity, models.expected(a))


@pytest.mark.parametrize("name", SPECS)
def test_a_mixed_batch_in_float32_equals_diffusers_to_the_last_digits(name: str) -> None:
    models = pair(SPECS[name])
    asked = mixture(SPECS[name], torch.float32)
    found = packed.forward(models.ours, [models.row(a) for a in asked])
    for velocity, a in zip(found, asked, strict=True):
        assert largest_difference(velocity, models.expected(a)) <= FLOAT32_CLOSE


class Crowd(NamedTuple):
    models: Pair
    rows: list[Row]
    alone: list[torch.Tensor]


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def crowd(request: pytest.FixtureRequest) -> Crowd:
    """Rows of many kinds, and what each gives alone."""
    dtype = request.param
    models = pair(SPECS["guidance"], dtype)
    spec = SPECS["guidance"]
    asked = mixture(spec, dtype)
    asked += [
        ask(spec, (4, 6), text=8, sigma=0.9, seed=4, dtype=dtype),
        ask(spec, (2, 2), text=4, references=[(2, 2)], sigma=0.1, seed=5, dtype=dtype),
        ask(spec, (8, 2), text=16, references=[(8, 8)], sigma=1.0, seed=6, dtype=dtype),
    ]
    with torch.inference_mode():
        rows = [models.row(a) for a in asked]
        alone = [packed.forward(models.ours, [row])[0] for row in rows]
    return Crowd(models, rows, alone)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(members=st.lists(st.integers(0, 6), min_size=1, max_size=7))
def test_no_company_and_no_order_changes_a_row(crowd: Crowd, members: list[int]) -> None:
    found = packed.forward(crowd.models.ours, [crowd.rows[at] for at in members])
    for at, velocity in zip(members, found, strict=True):
        if velocity.dtype is torch.bfloat16:
            assert torch.equal(velocity, crowd.alone[at])
        else:
            assert largest_difference(velocity, crowd.alone[at]) <= FLOAT32_CLOSE


def test_attention_sees_the_tokens_of_one_request_and_no_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = pair(SPECS["guidance"])
    asked = mixture(SPECS["guidance"], torch.float32)
    lengths = sorted(len(one.positions) for one in asked)
    seen: list[int] = []
    attend = kernels.attend

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.extend([k.shape[1]] * k.shape[0])
        return attend(q, k, v)

    monkeypatch.setattr(kernels, "attend", counted)
    packed.forward(models.ours, [models.row(one) for one in asked])
    blocks = len(models.ours.doubles) + len(models.ours.singles)
    assert sorted(seen) == sorted(lengths * blocks)


def test_an_adapter_works_on_its_own_request_only() -> None:
    models = pair(SPECS["guidance"])
    spec = SPECS["guidance"]
    first, second = (models.row(a) for a in mixture(spec, torch.float32)[:2])
    width = spec.width
    torch.manual_seed(3)
    delta = LowRank(torch.randn(width, 4) * 0.1, torch.randn(4, 3 * width) * 0.1)
    adapter = {"doubles.0.image.qkv": [delta], "doubles.1.text.qkv": [delta]}
    prepared = first.prepared
    dressed = Row(
        type(prepared)(
            text=prepared.text,
            reference=prepared.reference,
            rotation=prepared.rotation,
            modulation=prepared.modulation,
            adapters=(adapter,),
        ),
        first.latents,
        0,
    )
    plain, other = packed.forward(models.ours, [first, second])
    changed, untouched = packed.forward(models.ours, [dressed, second])
    (alone,) = packed.forward(models.ours, [dressed])
    assert largest_difference(untouched, other) <= FLOAT32_CLOSE
    assert largest_difference(changed, alone) <= FLOAT32_CLOSE
    assert largest_difference(changed, plain) > 0.01


def test_an_adapter_equals_weights_with_the_delta_added() -> None:
    models = pair(SPECS["guidance"])
    width = SPECS["guidance"].width
    row = models.row(mixture(SPECS["guidance"], torch.float32)[0])
    torch.manual_seed(4)
    delta = LowRank(torch.randn(width, 4) * 0.1, torch.randn(4, 7 * width) * 0.1)
    last = len(models.ours.singles) - 1
    adapter = {f"singles.{at}.fused": [delta] for at in range(last + 1)}
    fields = {name: getattr(row.prepared, name) for name in ("text", "reference", "rotation")}
    dressed = type(row.prepared)(**fields, modulation=row.prepared.modulation, adapters=(adapter,))
    (found,) = packed.forward(models.ours, [Row(dressed, row.latents, 0)])
    for block in models.ours.singles:
        assert isinstance(block, SingleBlock)
        block.fused.weight += (delta.down @ delta.up).T
    (expected,) = packed.forward(models.ours, [row])
    assert largest_difference(found, expected) <= 1e-5
