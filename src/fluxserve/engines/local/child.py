"""The engine process, one a device: `python -m fluxserve.engines.local.child`.

The server starts it; it speaks over the socket it inherits and ends when that is closed.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol

from fluxserve.core.ports import EncodedImage
from fluxserve.engines.local.cores import physical_cores
from fluxserve.engines.local.cost import CostModel
from fluxserve.engines.local.run import DeviceLost
from fluxserve.engines.local.turns import Turns
from fluxserve.engines.local.wire import (
    Beat,
    Broken,
    Cancel,
    Down,
    Order,
    Refused,
    Up,
    pack,
    receive_blocking,
)

if TYPE_CHECKING:
    from fluxserve.engines.local.loop import Loop
    from fluxserve.flux.weights import Model

log = logging.getLogger(__name__)

BEAT_S = 1.0
SMALL_BYTES = 2**30  # a model below that fits everywhere
# OpenMP threads that wait burn their core; after so many rounds (some 50 us) they sleep instead.
OPENMP_SPINS = "20000"
EXIT_REFUSED, EXIT_LOST = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """How the process was started."""

    fd: int
    model: Path
    device: str
    dtype: str
    fp8: str  # auto, on, off: copies of the linears in 8 bits beside the exact ones
    threads: int
    spool: Path
    rows_max: int
    preview_steps: int
    requests_max: int


class Voice:
    """Everything that is said to the server; safe between threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = Lock()

    def __call__(self, message: Up, blobs: Sequence[bytes] = ()) -> None:
        frame = pack(message, blobs)
        try:
            with self._lock:
                self._socket.sendall(frame)
        except OSError:
            os._exit(0)  # the server is gone, nobody waits for us


class Spool:
    """Where finished pictures are put for the server to take. A key is the name of a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, job_id: str, index: int, image: EncodedImage) -> str:
        """Store whole or not at all; the same job and index give the same key."""
        name = f"{hashlib.sha256(job_id.encode()).hexdigest()[:32]}-{index}"
        draft = self._folder / f"{name}.{os.getpid()}.part"
        draft.write_bytes(image.data)
        draft.replace(self._folder / name)
        return name


def main(arguments: Sequence[str]) -> int:
    said = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    gc.disable()  # until the model is loaded: all that is imported stays
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when we end
    os.putenv("GOMP_SPINCOUNT", OPENMP_SPINS)  # read when torch is loaded
    with socket.socket(fileno=said.fd) as connection:
        return _serve(said, connection)


def _parse(arguments: Sequence[str]) -> Arguments:
    parser = argparse.ArgumentParser(prog="fluxserve engine")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--fp8", choices=("auto", "on", "off"), default="off")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--rows-max", type=int, default=0)
    parser.add_argument("--preview-steps", type=int, default=0)
    parser.add_argument("--requests-max", type=int, default=16)
    return Arguments(**vars(parser.parse_args(arguments)))


def _serve(said: Arguments, connection: socket.socket) -> int:
    began = time.monotonic()
    voice = Voice(connection)
    vitals = Vitals()
    Thread(target=_beat, args=(voice, vitals), name="beat", daemon=True).start()
    # Torch takes two seconds to import: the server hears from us before that.
    import torch

    from fluxserve.engines.local.lanes import Lane, stream_of
    from fluxserve.engines.local.loop import Loop
    from fluxserve.engines.local.pipelines import Pipeline
    from fluxserve.engines.local.policy import Policy
    from fluxserve.engines.local.runner import Calibration, Runner, expected_cost
    from fluxserve.engines.local.scheduler import Scheduler
    from fluxserve.flux.folder import WeightsError

    try:
        torch.set_num_threads(said.threads or physical_cores())
        model, spare_bytes = _load(said)
    except (WeightsError, OSError, RuntimeError) as error:
        voice(Refused(message=str(error)))
        return EXIT_REFUSED
    is_shared = model.device.type == "cuda"
    turns = vitals.turns = Turns(shared=is_shared)
    runner = Runner(Pipeline(model, turns), turns, memory_max_bytes=spare_bytes // 2)
    cost = vitals.cost = CostModel(expected_cost(model.spec, model.device.type))
    policy = Policy(rows_max=said.rows_max) if said.rows_max else Policy()
    lanes = [Lane(name, model.device, torch.get_num_threads()) for name in ("encode", "decode")]
    loop = vitals.loop = Loop(
        worker=runner,
        scheduler=Scheduler({runner.batch_class: cost}, policy),
        encoding=lanes[0],
        decoding=lanes[1],
        send=voice,
        keep=Spool(said.spool).keep,
        clock=time.monotonic,
        preview_steps=said.preview_steps,
        spare=Calibration(model, cost, turns),
    )
    for lane in lanes:
        lane.start()
    Thread(target=_listen, args=(connection, loop), name="listen", daemon=True).start()
    gc.freeze()
    gc.enable()
    voice(replace(runner.ready, load_s=round(time.monotonic() - began, 3)))
    if is_shared:
        torch.cuda.set_stream(stream_of(model.device, priority=-1))
    _run(loop)
    return 0


def _run(loop: Loop[Any]) -> None:
    try:
        loop.run()
    except DeviceLost:
        log.exception("the device is lost; the process ends and is replaced")
        os._exit(EXIT_LOST)


def _load(said: Arguments) -> tuple[Model, int]:
    """Read the weights, after working out whether and how they fit; and the bytes to spare."""
    from fluxserve.engines.local import memory
    from fluxserve.flux import quantize, weights
    from fluxserve.flux.folder import inspect
    from fluxserve.flux.skips import FP8

    number = "auto" if said.dtype == FP8 else said.dtype
    device = weights.choose_device(said.device)
    linears = quantize.ways(said.dtype, said.fp8, device)
    if sum(path.stat().st_size for path in said.model.rglob("*.safetensors")) < SMALL_BYTES:
        model = weights.load(said.model, device=said.device, dtype=number, linears=linears[0])
        return model, SMALL_BYTES
    plan = memory.plan(
        inspect(said.model),
        device=device,
        dtype=weights.choose_dtype(number, device),
        linears=linears,
        rows_max=said.rows_max,
        requests_max=said.requests_max,
    )
    log.info("%s", plan.sentence)
    model = weights.load(
        said.model,
        device=said.device,
        dtype=number,
        linears=plan.linears,
        streams_text=plan.streams_text,
    )
    return model, plan.free_bytes - plan.device_bytes


class _Listener(Protocol):
    """What the reading thread needs of the loop."""

    def submit(self, order: Order, files: Sequence[bytes]) -> None: ...
    def cancel(self, job_id: str) -> None: ...
    def stop(self) -> None: ...


def _listen(connection: socket.socket, loop: _Listener) -> None:
    with connection.makefile("rb") as file:
        while True:
            try:
                message, blobs = receive_blocking(file)
            except Broken:
                os._exit(0)  # the server is gone: nothing here is worth finishing
            _obey(loop, message, blobs)


def _obey(loop: _Listener, message: Down | Up, blobs: Sequence[bytes]) -> None:
    match message:
        case Order():
            loop.submit(message, blobs)
        case Cancel(id=job_id):
            loop.cancel(job_id)
        case _:
            log.error("the server said %s, which is not for an engine", type(message).__name__)


@dataclass(slots=True)
class Vitals:
    """What the server hears at every beat, as far as the parts of it are there."""

    turns: Turns | None = None
    cost: CostModel | None = None
    loop: Loop[Any] | None = None

    def beat(self) -> Beat:
        cost = self.cost.coefficients if self.cost is not None else (0.0, 0.0, 0.0, 0.0)
        return Beat(
            busy_s=0.0 if self.turns is None else round(self.turns.busy_s, 3),
            cost=(cost[0], cost[1], cost[2], cost[3]),
            expected_s=0.0 if self.loop is None else round(self.loop.expected_s, 3),
        )

    def pardon(self, seconds: float) -> None:
        """The process was held up for so long: that is no time at work."""
        if self.turns is not None:
            self.turns.pardon(seconds)


def _beat(voice: Voice, vitals: Vitals) -> None:
    while True:
        voice(vitals.beat())
        slept_at = time.monotonic()
        time.sleep(BEAT_S)
        vitals.pardon(max(0.0, time.monotonic() - slept_at - BEAT_S))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
