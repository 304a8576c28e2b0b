"""What goes wrong beside the steps, in the lanes that encode and decode."""

from collections.abc import Callable, Sequence

import pytest
import torch

from fluxserve.core.ports import EncodedImage
from fluxserve.engines.local.plan import Plan
from fluxserve.engines.local.run import DeviceLost, NoRoom
from fluxserve.engines.local.runner import _understood
from fluxserve.engines.local.wire import Order
from tests.engines.local.test_loop import PICTURE, Bench, Blank, Device


class Fragile(Device):
    """Dies for good in the lane that it is told to."""

    dies_in = ""

    def encode(
        self, order: Order, files: Sequence[bytes], plan: Plan, note: Callable[[str], None]
    ) -> Sequence[Blank]:
        self._die("encode")
        return super().encode(order, files, plan, note)

    def decode(
        self, order: Order, files: Sequence[bytes], plan: Plan, sample: Blank
    ) -> EncodedImage:
        self._die("decode")
        return super().decode(order, files, plan, sample)

    def glimpse(self, sample: Blank, plan: Plan) -> Callable[[], EncodedImage] | None:
        return self._look

    def _look(self) -> EncodedImage:
        self._die("glimpse")
        return PICTURE

    def _die(self, where: str) -> None:
        if where == self.dies_in:
            raise DeviceLost("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("lane", ["encode", "decode", "glimpse"])
def test_a_device_that_dies_in_a_lane_ends_the_process_and_no_request(lane: str) -> None:
    bench = Bench()
    bench.device = bench.loop._worker = Fragile()
    bench.device.dies_in = lane
    bench.order("j0", preview_steps=1)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        bench.finish()
    assert bench.ended() == {}


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ],
)
def test_a_library_without_memory_is_no_dead_device(said: str) -> None:
    kind = getattr(torch, "AcceleratorError", RuntimeError)
    assert isinstance(_understood(kind(said)), NoRoom)
