"""A device without room: what failed is let go before anything is tried again."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from fluxserve.engines.local.run import NoRoom
from tests.engines.local.test_loop import Bench, Blank, Device


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
