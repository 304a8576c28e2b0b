"""A device without room: what failed is let go before anything is tried again."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from PIL import Image

from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import OutputFormat
from fluxserve.engines.local.pipelines import Pipeline
from fluxserve.engines.local.plan import Plan
from fluxserve.engines.local.run import NoRoom
from fluxserve.engines.local.runner import Runner
from fluxserve.engines.local.turns import Turns
from fluxserve.engines.local.wire import Order
from fluxserve.flux.cache import Cache
from fluxserve.flux.weights import Model
from fluxserve.images.codec import encode
from tests.engines.local.test_loop import Bench, Blank, Device
from tests.engines.local.test_plan import EDIT


@dataclass(slots=True)
class Greedy(Device):
    """Each forward holds a tensor in its frame, also when it fails as it is told to."""

    fault: type[RuntimeError] = torch.OutOfMemoryError
    held: list[weakref.ref[torch.Tensor]] = field(default_factory=list)
    left_over: list[int] = field(default_factory=list)  # tensors of failed steps, at each look

    def _look(self) -> None:
        self.left_over.append(sum(tensor() is not None for tensor in self.held))

    def _forward(self, samples: Sequence[Blank]) -> None:
        activations = torch.zeros(8)
        self.held.append(weakref.ref(activations))
        if len(samples) > self.room:
            raise self.fault("it failed deep inside")

    def advance(self, samples: Sequence[Blank]) -> None:
        self._look()
        try:
            self._forward(samples)
        except torch.OutOfMemoryError as error:
            raise NoRoom("too many") from error
        except RuntimeError as error:
            raise RuntimeError("not understood") from error
        super(Greedy, self).advance(samples)

    def make_room(self) -> None:
        self._look()
        super(Greedy, self).make_room()


def crowded(bench: Bench, fault: type[RuntimeError]) -> Greedy:
    """Eight requests on a device that takes one of them at a time."""
    device = Greedy(room=1, fault=fault)
    bench.device = bench.loop._worker = device
    for at in range(8):
        bench.order(f"j{at}")
    bench.finish()
    return device


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError, RuntimeError])
def test_what_a_failed_step_computed_is_gone_before_a_smaller_one_is_tried(
    fault: type[RuntimeError],
) -> None:
    bench = Bench()
    device = crowded(bench, fault)
    assert set(bench.ended().values()) == {""}
    assert len(device.left_over) > 8
    assert set(device.left_over) == {0}


def test_room_is_made_when_a_step_does_not_fit() -> None:
    assert crowded(Bench(), torch.OutOfMemoryError).rooms_made == 3  # at 8, 4 and 2 requests


# --- what is kept in case it is asked for again ---------------------------------------------------


class Hoarder(Device):
    """Has room for one thing only, and that once something was spared."""

    def __init__(self, needed_for: str) -> None:
        super().__init__()
        self.needed_for = needed_for
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.left_over = 0

    def _need(self, what: str) -> None:
        activations = torch.zeros(8)
        if what == self.needed_for and not self.rooms_made:
            self.held.append(weakref.ref(activations))
            raise NoRoom("too many") from torch.OutOfMemoryError("CUDA out of memory")

    def make_room(self) -> None:
        super().make_room()
        self.left_over += sum(tensor() is not None for tensor in self.held)

    def encode(
        self, order: Order, files: Sequence[bytes], plan: Plan, note: Callable[[str], None]
    ) -> Sequence[Blank]:
        self._need("encode")
        return super().encode(order, files, plan, note)

    def advance(self, samples: Sequence[Blank]) -> None:
        self._need("advance")
        super().advance(samples)

    def decode(
        self, order: Order, files: Sequence[bytes], plan: Plan, sample: Blank
    ) -> EncodedImage:
        self._need("decode")
        return super().decode(order, files, plan, sample)


@pytest.mark.parametrize("work", ["encode", "advance", "decode"])
def test_work_that_found_no_room_is_done_once_more_after_something_was_spared(work: str) -> None:
    bench = Bench()
    device = bench.device = bench.loop._worker = Hoarder(needed_for=work)
    bench.order("j0")
    bench.finish()
    assert bench.ended() == {"j0": ""}
    assert bench.kept == [("j0", 0)]
    assert (device.rooms_made, device.left_over) == (1, 0)


@pytest.mark.parametrize("prompt", ["huge", "undecodable"])
def test_work_that_finds_no_room_twice_fails(prompt: str) -> None:
    bench = Bench()
    bench.order("j0", prompt)
    bench.finish()
    assert bench.ended() == {"j0": "out_of_memory"}


def runner(model: Model) -> Runner:
    turns = Turns(shared=False)
    return Runner(Pipeline(model, turns), turns, memory_max_bytes=0)


def picture() -> bytes:
    return encode(Image.new("RGB", (64, 64), "red"), OutputFormat.PNG).data


@pytest.mark.usefixtures("calm")
def test_making_room_empties_every_cache_and_what_requests_hold_stays(model: Model) -> None:
    one = runner(model)
    wanted = replace(EDIT, indexes=(0,), sizes=((64, 64),), num_steps=2)
    plan = one.plan(wanted)
    (sample,) = one.encode(wanted, [picture()], plan, lambda text: None)
    kept = one._pipeline.cache_stats
    assert all(stats.size_bytes > 0 for stats in kept.values())
    one.make_room()
    assert not any(stats.size_bytes for stats in one._pipeline.cache_stats.values())
    one.advance([sample])
    assert sample.step == 1


def test_a_preview_that_finds_no_room_is_left_out(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = runner(model)
    wanted = replace(EDIT, indexes=(0,), sizes=((64, 64),), num_steps=2)
    plan = one.plan(wanted)
    (sample,) = one.encode(wanted, [picture()], plan, lambda text: None)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fluxserve.flux.sample.glimpse", full)
    assert one.glimpse(sample, plan) is None


def test_what_is_too_large_for_a_cache_makes_nothing_else_go() -> None:
    cache: Cache[str] = Cache(3, len)
    cache.get("short", lambda: "abc")
    assert cache.get("long", lambda: "abcd") == "abcd"
    assert cache.get("short", lambda: "made again") == "abc"
