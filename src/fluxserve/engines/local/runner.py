"""The device and its model: what the loop asks for, done in tensors."""

from __future__ import annotations

import gc
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import JSON
from fluxserve.engines.local.cost import (
    Coefficients,
    CostModel,
    Shape,
    Timing,
    calibration_shapes,
    load_of,
    of_rates,
)
from fluxserve.engines.local.pipelines import Pipeline, encode_glimpse
from fluxserve.engines.local.plan import Plan, plan
from fluxserve.engines.local.run import DeviceLost, NoRoom, Spoiled
from fluxserve.engines.local.turns import Turns
from fluxserve.engines.local.wire import Order, Ready
from fluxserve.flux import sample
from fluxserve.flux.memory import memory_bytes
from fluxserve.flux.quantize import Fp8Linear, TwinLinear
from fluxserve.flux.sample import NotANumber, Sample
from fluxserve.flux.skips import APPROXIMATIONS, FP8, REF_KV
from fluxserve.flux.spec import ModelSpec
from fluxserve.flux.weights import Model

log = logging.getLogger(__name__)

# What a step costs before the first one was timed. GPU: what the best published servers reach in
# bfloat16; CPU: two cores with AVX2. The model corrects itself from the first step on.
_RATES = {
    "cuda": (550e12, 500e12, 3e12, 10e-3),
    "mps": (10e12, 5e12, 3e11, 10e-3),
    "cpu": (1e11, 3e10, 1e10, 4e-3),
}  # flop/s of GEMM, flop/s of attention, bytes/s, seconds for every forward


# A measurement ends after so many seconds, whatever is left to measure.
CALIBRATION_S = 1.5
CALIBRATION_ROWS = {"cuda": 6144, "mps": 2048, "cpu": 768}


def expected_cost(spec: ModelSpec, device_type: str) -> Coefficients:
    """Coefficients of the step-cost model for a device that was not measured yet."""
    gemm, attention, bandwidth, launch = _RATES.get(device_type, _RATES["cpu"])
    return of_rates(
        dim=spec.transformer.width,
        blocks=spec.transformer.num_layers + spec.transformer.num_single_layers,
        gemm_flops_per_s=gemm,
        attention_flops_per_s=attention,
        bytes_per_s=bandwidth,
        launch_s=launch,
    )


class Calibration:
    """Times forwards of several shapes when there is nothing else to do, one at each call.

    The smaller ones first; then the cost model learns from them. Until then it goes by what a
    device of this kind can be expected to do, and by the steps it has seen.
    """

    def __init__(self, model: Model, cost: CostModel, turns: Turns) -> None:
        self._model, self._cost, self._turns = model, cost, turns
        self._work = self._forwards()

    def __call__(self) -> bool:
        """Time one more; False when nothing is left. DeviceLost."""
        try:
            with self._turns:
                next(self._work)
        except StopIteration:
            return False
        except RuntimeError as error:
            understood = _understood(error)
            if isinstance(understood, DeviceLost):
                raise understood from error
            log.warning("the step times of this device could not be measured: %s", error)
            return False
        return True

    def _forwards(self) -> Iterator[None]:
        device = self._model.device.type
        shapes = calibration_shapes(CALIBRATION_ROWS.get(device, CALIBRATION_ROWS["cpu"]))
        ordered = sorted(shapes, key=lambda forward: sum(shape.rows for shape in forward))
        self._seconds(ordered[0])  # the first one is never typical
        yield
        timings, spent_s = [], 0.0
        for forward in ordered:
            found = self._seconds(forward)
            yield
            again = self._seconds(forward)
            yield
            timings.append(Timing(load_of(forward), min(found, again)))
            spent_s += found + again
            if spent_s > CALIBRATION_S:
                break
        self._cost.learn(timings)

    def _seconds(self, forward: Sequence[Shape]) -> float:
        return sample.rehearse(self._model, [shape.rows for shape in forward])


class Runner:
    """One model on one device. `advance` belongs to the loop's thread, the rest to the lanes."""

    def __init__(self, pipeline: Pipeline, turns: Turns, *, memory_max_bytes: int) -> None:
        """`memory_max_bytes` may be taken by what samples remember of their references."""
        self._pipeline = pipeline
        self._turns = turns
        self._model = pipeline.model
        self._is_cuda = self._model.device.type == "cuda"
        dtype = str(self._model.dtype).removeprefix("torch.")
        self.batch_class = f"{self._model.spec.name}/{dtype}"
        layers = {type(layer) for layer in self._model.transformer.modules()}
        self._has_twins = TwinLinear in layers
        self._is_fp8 = Fp8Linear in layers and not self._has_twins
        self._named = {"device": str(self._model.device), "dtype": dtype}
        self._memory_max_bytes = memory_max_bytes
        self._remembered: dict[str, int] = {}  # bytes set aside, by order

    def plan(self, order: Order) -> Plan:
        found = self._within_memory(order)
        # Where there is nothing else it is not up to the request, and no more exact for that.
        if self._is_fp8 or (self._has_twins and FP8 in order.approximations):
            return replace(found, approximations=(*found.approximations, FP8))
        if FP8 in order.approximations:
            note = "fp8 is not used: this device has no 8-bit copies of the weights"
            return replace(found, notes=(*found.notes, note))
        return found

    @property
    def approximations(self) -> tuple[str, ...]:
        """Those that a request may name here."""
        has_fp8 = self._is_fp8 or self._has_twins
        return tuple(sorted(APPROXIMATIONS | ({FP8} if has_fp8 else frozenset())))

    def _within_memory(self, order: Order) -> Plan:
        found = plan(self._model.spec, order)
        if REF_KV not in found.approximations:
            return found
        tokens = (found.shape.rows - found.reused.rows) * len(order.indexes)
        transformer, item_bytes = self._model.spec.transformer, self._model.dtype.itemsize
        needed = memory_bytes(transformer, tokens, item_bytes)
        if sum(self._remembered.values()) + needed > self._memory_max_bytes:
            left = tuple(name for name in order.approximations if name != REF_KV)
            exact = plan(self._model.spec, replace(order, approximations=left))
            note = "ref_kv is not used: the device has no room to remember the references"
            return replace(exact, notes=(*exact.notes, note))
        self._remembered[order.id] = needed
        return found

    def release(self, order_id: str) -> None:
        self._remembered.pop(order_id, None)

    def encode(
        self, order: Order, files: Sequence[bytes], plan: Plan, note: Callable[[str], None]
    ) -> Sequence[Sample]:
        try:
            condition = self._pipeline.encode(order, files, plan, note)
            seeds = [(order.seed + index) % 2**32 for index in order.indexes]
            samples = [self._pipeline.begin(condition, seed) for seed in seeds]
            self._settle()
        except RuntimeError as error:
            raise _understood(error) from error
        return samples

    def advance(self, samples: Sequence[Sample]) -> None:
        try:
            with self._turns:
                sample.advance(self._model, samples)
                self._settle()
        except NotANumber as error:
            raise Spoiled(error.samples) from error
        except RuntimeError as error:
            raise _understood(error) from error

    def glimpse(self, made: Sample, plan: Plan) -> Callable[[], EncodedImage] | None:
        try:
            pixels = self._pipeline.glimpse(made)
        except RuntimeError as error:
            understood = _understood(error)
            if isinstance(understood, NoRoom):
                return None  # the picture matters more
            raise understood from error
        return None if pixels is None else lambda: encode_glimpse(pixels, plan)

    def decode(
        self, order: Order, files: Sequence[bytes], plan: Plan, made: Sample
    ) -> EncodedImage:
        try:
            return self._pipeline.decode(order, files, plan, made)
        except NotANumber as error:
            raise Spoiled(error.samples) from error
        except RuntimeError as error:
            raise _understood(error) from error

    def make_room(self) -> None:
        """What is kept in case it is asked for again goes, and what torch keeps for new tensors."""
        self._pipeline.forget()
        gc.collect()  # tensors that only hang in a circle with the frames of what failed
        if self._is_cuda:
            torch.cuda.empty_cache()

    def facts(self) -> Mapping[str, JSON]:
        caches = {
            name: {"hits": stats.hits, "misses": stats.misses}
            for name, stats in self._pipeline.cache_stats.items()
        }
        return {**self._named, "model": self._model.spec.name, "caches": caches}

    @property
    def ready(self) -> Ready:
        """How it introduces itself; how long loading took is not for it to say."""
        return Ready(
            name=self._model.spec.name,
            device=self._named["device"],
            dtype=self._named["dtype"],
            device_name=self.device_name,
            approximations=self.approximations,
            load_s=0.0,
        )

    @property
    def device_name(self) -> str:
        """As its maker calls it."""
        if self._is_cuda:
            return torch.cuda.get_device_name(self._model.device)
        return platform.processor() or platform.machine()

    def _settle(self) -> None:
        """Wait for this thread's stream, so that other threads may read what it wrote."""
        if self._is_cuda:
            torch.cuda.current_stream().synchronize()


# How torch, MPS, the CPU's allocator, cuBLAS (which makes its handles late) and cuDNN say it.
_FULL = (
    "out of memory",
    "can't allocate",
    "alloc_failed",
    "cublas_status_not_initialized",
    "unable to find an engine",
)


def _understood(error: RuntimeError) -> Exception:
    """What a device error means: too little memory, a dead device, or a failure of its own."""
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _FULL):
        return NoRoom(str(error))
    dead = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    is_dead = "cuda error" in text or (dead is not None and isinstance(error, dead))
    return DeviceLost(str(error)) if is_dead else error
