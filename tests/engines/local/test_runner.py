"""What the runner sets aside for references that are remembered, and what it does without room."""

import math
from dataclasses import replace

import pytest
import torch

from fluxserve.engines.local.cost import CostModel
from fluxserve.engines.local.pipelines import Pipeline
from fluxserve.engines.local.run import DeviceLost, NoRoom, Spoiled
from fluxserve.engines.local.runner import Calibration, Runner, expected_cost
from fluxserve.engines.local.turns import Turns
from fluxserve.flux import weights
from fluxserve.flux.folder import embedded_folder
from fluxserve.flux.memory import memory_bytes
from fluxserve.flux.quantize import quantize, twin
from fluxserve.flux.sample import NotANumber
from fluxserve.flux.spec import FLUX_KONTEXT_DEV
from fluxserve.flux.weights import Model
from tests.engines.local.test_plan import EDIT

WANTED = replace(EDIT, approximations=("skip", "ref_kv"), indexes=(0,), guidance=1.0)


pytestmark = pytest.mark.usefixtures("calm")


def runner(model: Model, orders: int) -> Runner:
    """With room for the references of so many orders."""
    turns = Turns(shared=False)
    found = Runner(Pipeline(model, turns), turns, memory_max_bytes=0).plan(
        replace(WANTED, approximations=())
    )
    rows = found.shape.rows // found.shape.keys
    side = model.spec.native_size or 0
    tokens = rows * model.spec.tokens(side, side)
    each = memory_bytes(model.spec.transformer, tokens, 4)
    return Runner(Pipeline(model, turns), turns, memory_max_bytes=orders * each)


def test_without_room_an_order_is_computed_exactly_and_told_so(model: Model) -> None:
    two = runner(model, 2)
    plans = [two.plan(replace(WANTED, id=str(at))) for at in range(3)]
    assert [found.approximations for found in plans] == [("skip", "ref_kv")] * 2 + [("skip",)]
    assert "no room to remember" in plans[2].notes[-1]
    assert plans[2].calls_reusing == 0


def test_room_comes_back_when_an_order_ends(model: Model) -> None:
    one = runner(model, 1)
    one.plan(replace(WANTED, id="first"))
    one.release("first")
    one.release("never there")
    assert "ref_kv" in one.plan(replace(WANTED, id="second")).approximations


def test_every_output_needs_room_of_its_own(model: Model) -> None:
    found = runner(model, 2).plan(replace(WANTED, indexes=(0, 1, 2)))
    assert "ref_kv" not in found.approximations


def test_8_bits_are_told_whatever_was_asked_for() -> None:
    coarse = weights.load(embedded_folder(), device="cpu", dtype="float32")
    quantize(coarse.transformer)
    one = runner(coarse, 1)
    assert one.plan(replace(WANTED, approximations=())).approximations == ("fp8",)
    assert one.plan(replace(WANTED, approximations=("skip",))).approximations == ("skip", "fp8")


def test_with_both_forms_each_order_has_8_bits_if_it_asks_for_them() -> None:
    both = weights.load(embedded_folder(), device="cpu", dtype="float32")
    twin(both.transformer)
    one = runner(both, 1)
    assert one.approximations == ("fp8", "ref_kv", "skip")
    assert one.plan(replace(WANTED, approximations=())).approximations == ()
    assert one.plan(replace(WANTED, approximations=("fp8",))).approximations == ("fp8",)
    assert one.plan(replace(WANTED, approximations=("fp8", "skip"))).approximations == (
        "skip",
        "fp8",
    )


def test_8_bits_that_are_not_there_are_not_used_and_that_is_told(model: Model) -> None:
    found = runner(model, 1)
    assert "fp8" not in found.approximations
    wanted = found.plan(replace(WANTED, approximations=("skip", "fp8")))
    assert wanted.approximations == ("skip",)
    assert "no 8-bit copies" in wanted.notes[-1]


@pytest.mark.parametrize(
    ("raised", "understood"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), NoRoom),
        (RuntimeError("MPS backend out of memory"), NoRoom),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), NoRoom),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasC`"), NoRoom),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasC`"), NoRoom),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), NoRoom),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLost),
        (NotANumber([1]), Spoiled),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_what_a_device_says_in_a_step_is_understood(
    model: Model, monkeypatch: pytest.MonkeyPatch, raised: Exception, understood: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("fluxserve.flux.sample.advance", fail)
    with pytest.raises(understood) as caught:
        runner(model, 1).advance([])
    assert type(caught.value) is understood


def test_a_picture_of_no_numbers_is_told_from_a_failure(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NotANumber([0])

    monkeypatch.setattr("fluxserve.flux.sample.finish", fail)
    one = runner(model, 1)
    plan = one.plan(WANTED)
    with pytest.raises(Spoiled):
        one.decode(WANTED, [], plan, None)  # type: ignore[arg-type]


def test_a_token_of_flux_takes_700_kilobytes() -> None:
    assert memory_bytes(FLUX_KONTEXT_DEV.transformer, 1, 2) == 700_416


def test_step_times_are_measured_one_forward_at_a_call(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxserve.engines.local.runner.CALIBRATION_S", math.inf)
    monkeypatch.setattr("fluxserve.engines.local.runner.CALIBRATION_ROWS", {"cpu": 64})
    cost = CostModel(expected_cost(model.spec, "cpu"))
    measure = Calibration(model, cost, Turns(shared=False))
    calls = 0
    while measure():
        calls += 1
        assert cost.version == 0
    assert calls == 1 + 2 * 12  # a first one, and all shapes twice
    assert cost.version == 1
    assert not measure()
    assert cost.coefficients != expected_cost(model.spec, "cpu")


def test_a_device_that_cannot_be_measured_works_by_what_is_expected(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> float:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("fluxserve.flux.sample.rehearse", full)
    cost = CostModel(expected_cost(model.spec, "cpu"))
    measure = Calibration(model, cost, Turns(shared=False))
    assert not measure()
    assert not measure()
    assert cost.version == 0
