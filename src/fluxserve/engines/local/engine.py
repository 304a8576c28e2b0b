"""The local engine as the server sees it: async outside, one process a device inside. No torch.

    run(job) ── Order ──> engine process ── Moved, Glimpse, Made .. Ended ──> updates

A process that dies takes no job with it: each is run again with the same seed, and only the outputs
that were not there yet. A job that was in hand when it died runs next time without company; if the
process dies again, that job is the cause and fails alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from fluxserve.core.errors import EngineError, ErrorCode, OutOfMemory, StartupError
from fluxserve.core.ports import (
    EncodedImage,
    EngineUpdate,
    Job,
    Log,
    Output,
    Preview,
    Progress,
    Report,
)
from fluxserve.core.request import JSON, ImageRequest
from fluxserve.engines.local.cost import CostModel
from fluxserve.engines.local.loras import LoraFiles, LoraSource
from fluxserve.engines.local.orders import order, order_of
from fluxserve.engines.local.plan import plan
from fluxserve.engines.local.process import EngineProcess, Inbox, Lost
from fluxserve.engines.local.start import Early, EngineSettings, Setup, setups_of
from fluxserve.engines.local.wire import Ended, Glimpse, Made, Moved, Note, Order
from fluxserve.flux.folder import WeightsError, inspect
from fluxserve.flux.skips import APPROXIMATIONS, FP8, SKIP
from fluxserve.flux.spec import ModelSpec

log = logging.getLogger(__name__)

DEATHS_MAX = 2  # of the process with a job in hand, before the job counts as the cause
CAPACITY = 16
AWAY_S = 0.1  # between tries while a process is between death and restart


class LocalEngine:
    """One model on one or several devices of this machine."""

    def __init__(
        self,
        name: str,
        setups: Sequence[Setup],
        *,
        capacity: int = CAPACITY,
        loras: LoraSource | None = None,
        go_fast: Sequence[str] = (SKIP,),
        early: Early | None = None,
    ) -> None:
        """StartupError when the model folder cannot be used.

        `go_fast` names the approximations that a request allows with its switch of that name;
        `early` holds processes that were started beforehand.
        """
        self.name = name
        self.capacity = capacity * len(setups)
        try:
            self._spec: ModelSpec = inspect(setups[0].model)
        except WeightsError as error:
            raise StartupError(f"the model of engine {name}: {error}") from error
        self._processes = [EngineProcess(setup, early) for setup in setups]
        self._loras = loras
        self._go_fast = tuple(go_fast)
        self._suspects = asyncio.Lock()  # one job at a time may be the one that kills

    @classmethod
    def of(
        cls,
        name: str,
        settings: EngineSettings,
        data_dir: Path,
        *,
        loras: LoraSource | None = None,
        early: Early | None = None,
    ) -> Self:
        """As the settings say; with no model folder, the small model of the package.

        Without `loras` they are taken by name from data_dir/loras.
        """
        return cls(
            name,
            setups_of(name, settings, data_dir),
            capacity=settings.concurrency,
            loras=loras or LoraFiles(Path(data_dir) / "loras"),
            go_fast=settings.go_fast,
            early=early,
        )

    async def start(self) -> None:
        """Start the processes; `trouble` says until when they are loading."""
        for process in self._processes:
            await process.start()

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._processes))
        if self._loras is not None:
            await self._loras.aclose()

    @property
    def trouble(self) -> str | None:
        if any(process.ready is not None for process in self._processes):
            return None
        refusals = [process.refusal for process in self._processes if process.refusal]
        if refusals:
            return refusals[0]
        setbacks = [process.setback for process in self._processes if process.setback]
        if setbacks:
            return f"the engine cannot be started again yet, and is tried on: {setbacks[0]}"
        failed = max(process.failed_starts for process in self._processes)
        if failed:
            return f"the engine process ended {failed} times before it was ready; see the log"
        return f"{self._spec.name} is being loaded"

    @property
    def approximations(self) -> frozenset[str]:
        """Those that a request may name here; while nothing is ready, those that there may be."""
        told = [process.ready.approximations for process in self._processes if process.ready]
        if told:
            return frozenset(name for names in told for name in names)
        if any(process.setup.may_have_fp8 for process in self._processes):
            return APPROXIMATIONS | {FP8}
        return APPROXIMATIONS

    @property
    def processes(self) -> Sequence[EngineProcess]:
        return self._processes

    @property
    def devices(self) -> Sequence[JSON]:
        """What each device is and does, for those who watch."""
        return [process.facts for process in self._processes]

    async def wait_ready(self) -> None:
        """Until the first device can work; EngineError when none ever will."""
        waits = [asyncio.create_task(process.wait_ready()) for process in self._processes]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        refusals = [process.refusal for process in self._processes]
        if all(refusals):
            raise EngineError(f"the engine cannot start: {refusals[0]}")

    def estimate(self, request: ImageRequest) -> float | None:
        """Seconds of device time for all outputs, alone; None before anything is known."""
        cost = next((process.cost for process in self._processes if process.cost), None)
        if cost is None:
            return None
        side = (request.width or 1024, request.height or 1024)
        wanted = order(
            request,
            job_id="",
            sizes=[side] * len(request.images),
            has_mask=request.mask is not None,
            go_fast=self._go_fast,
        )
        try:
            found = plan(self._spec, wanted)
        except EngineError:
            return None
        model = CostModel(cost)
        return request.num_outputs * sum(model.alone(shape) for shape in found.steps)

    async def run(self, job: Job) -> AsyncGenerator[EngineUpdate, None]:
        done: set[int] = set()
        deaths = 0
        while True:
            try:
                async with self._quarantine(deaths):
                    updates = self._attempt(job, done, alone=deaths > 0)
                    async with contextlib.aclosing(updates):
                        async for update in updates:
                            if isinstance(update, Output):
                                done.add(update.index)
                            yield update
                return
            except Lost:
                deaths += 1
                log.warning("%s: the engine process ended under it", job.prediction_id)
                if deaths >= DEATHS_MAX:
                    raise EngineError(
                        f"the engine stopped {deaths} times while it worked on this request"
                    ) from None
                yield Log(text="The engine was restarted; the run begins again with the same seed")

    @contextlib.asynccontextmanager
    async def _quarantine(self, deaths: int) -> AsyncGenerator[None, None]:
        """Jobs under suspicion go one after the other, so that the guilty one is found."""
        if deaths == 0:
            yield
            return
        async with self._suspects:
            yield

    async def _attempt(
        self, job: Job, done: set[int], *, alone: bool
    ) -> AsyncGenerator[EngineUpdate, None]:
        """One run on one device; Lost when the process goes away."""
        process, inbox, sent = await self._submit(job, done, alone=alone)
        assert process.ready is not None
        served_by = f"{process.ready.name} on {process.ready.device} ({process.ready.dtype})"
        has_ended = False
        try:
            while not has_ended:
                news = await inbox.get()
                if isinstance(news, Lost):
                    has_ended = True
                    raise news
                message, blobs = news
                if isinstance(message, Ended):
                    has_ended = True
                    yield _report(message, served_by)
                else:
                    yield await self._update(message, blobs, process.setup.spool)
        finally:
            if has_ended:
                process.forget(sent.id)
            else:
                await process.drop(sent.id, inbox)

    async def _submit(
        self, job: Job, done: set[int], *, alone: bool
    ) -> tuple[EngineProcess, Inbox, Order]:
        """Hand the job to the ready device that has the fewest, waiting for one if need be."""
        files = [image.data for image in job.images] + ([job.mask.data] if job.mask else [])
        left = tuple(i for i in range(job.request.num_outputs) if i not in done)
        wanted = order_of(job, left, self._go_fast, alone=alone)
        wanted = replace(wanted, loras=await self._lora_paths(job))
        while True:
            await self.wait_ready()
            ready = self._able(job)
            for process in sorted(ready, key=lambda process: process.jobs):
                with contextlib.suppress(Lost):
                    return process, await process.submit(wanted, files), wanted
            await asyncio.sleep(AWAY_S)

    def _able(self, job: Job) -> Sequence[EngineProcess]:
        """The ready devices that can do what the job names; EngineError when none of them can."""
        ready = [process for process in self._processes if process.ready is not None]
        named = frozenset[str](job.request.approximate or ())
        able = [x for x in ready if x.ready and named <= set(x.ready.approximations)]
        if ready and not able:
            lacking = sorted(named - self.approximations) or sorted(named)
            text = f"approximate: {self.name} cannot do {', '.join(lacking)}"
            raise EngineError(text, field="approximate")
        return able

    async def _lora_paths(self, job: Job) -> tuple[tuple[str, float], ...]:
        """The adapters of a request as files on this machine, with their scales."""
        if not job.request.loras:
            return ()
        if self._loras is None:
            raise EngineError("loras: this engine has no place to take them from", field="loras")
        paths = [await self._loras.path_of(lora.path) for lora in job.request.loras]
        return tuple(
            (str(path), lora.scale) for path, lora in zip(paths, job.request.loras, strict=True)
        )

    async def _update(
        self, message: Moved | Glimpse | Made | Note, blobs: Sequence[bytes], spool: Path
    ) -> EngineUpdate:
        match message:
            case Moved(step=step, total=total, eta_s=eta_s, position=position):
                return Progress(step=step, total=total, eta_s=eta_s, queue_position=position)
            case Glimpse(mime=mime, width=width, height=height):
                image = EncodedImage(data=blobs[0], mime=mime, width=width, height=height)
                return Preview(image=image, step=message.step, index=message.index)
            case Made(mime=mime, width=width, height=height):
                data = await asyncio.to_thread(_take, spool / message.key)
                image = EncodedImage(data=data, mime=mime, width=width, height=height)
                return Output(index=message.index, image=image, seed=message.seed)
            case Note(text=text):
                return Log(text=text)


def _take(path: Path) -> bytes:
    """Read a finished picture out of the spool."""
    data = path.read_bytes()
    path.unlink(missing_ok=True)
    return data


def _report(ended: Ended, served_by: str) -> Report:
    """The facts of a run that went well; raises what went wrong."""
    if not ended.code:
        return Report(metrics=ended.metrics, served_by=served_by)
    kind = OutOfMemory if ended.code == ErrorCode.OUT_OF_MEMORY else EngineError
    error = kind(ended.message, field=ended.field_name or None)
    if ended.code in set(ErrorCode):
        error.code = ErrorCode(ended.code)
    raise error
