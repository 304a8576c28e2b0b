"""Claims queued predictions for one engine, runs them, and writes down how they end.

claim -> load inputs -> engine.run -> keep outputs -> move. A heartbeat renews the lease; losing it,
or a cancel, closes the engine's generator, and the fence keeps late writes out.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import (
    Conflict,
    EngineError,
    EngineLost,
    ErrorCode,
    Failure,
    FluxserveError,
    NotFound,
    TimedOut,
    Unavailable,
)
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.inputs import load_inputs
from fluxserve.core.live import Live, LiveBoard, progress_line
from fluxserve.core.outcomes import Outcomes
from fluxserve.core.ports import (
    Engine,
    EngineUpdate,
    Intake,
    Job,
    Log,
    Output,
    PredictionStore,
    Preview,
    Progress,
    Report,
)
from fluxserve.core.prediction import OutputImage, Prediction
from fluxserve.core.request import JSON
from fluxserve.core.sizes import Size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the dispatcher waits for what."""

    lease_s: float = 30.0  # a worker silent for this long is taken for dead
    heartbeat_s: float = 7.0
    poll_s: float = 1.0  # the bus is a hint: look for work this often anyway
    trouble_s: float = 0.05  # an engine that cannot work, or not yet, is asked again this soon
    job_s: float = 1800.0  # a job that runs longer has failed
    drain_s: float = 20.0  # a stop waits this long for running jobs, then puts them back
    attempts_max: int = 5  # starts of one prediction before it counts as failed


@dataclass(slots=True, eq=False)
class _Run:
    """One start of a prediction, in this process."""

    prediction: Prediction
    live: Live
    task: asyncio.Task[None] | None = None
    is_over: bool = False  # ended elsewhere: there is nothing to put back

    def stop(self) -> None:
        self.is_over = True
        if self.task:
            self.task.cancel()


class Dispatcher:
    """Feeds one engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: PredictionStore,
        outcomes: Outcomes,
        intake: Intake,
        bus: EventBus,
        live: LiveBoard,
        catalog: Catalog,
        clock: Callable[[], datetime],
        owner: str,
        patience: Patience,
    ) -> None:
        self.engine = engine
        self._store = store
        self._outcomes = outcomes
        self._intake = intake
        self._bus = bus
        self._live = live
        self._catalog = catalog
        self._clock = clock
        self._owner = owner
        self._patience = patience
        self._wake = asyncio.Event()
        # By start and not by id: after a lost lease two starts may meet for a moment.
        self._running: dict[tuple[str, int], _Run] = {}
        self._loop: asyncio.Task[None] | None = None
        self._is_stopping = False

    async def start(self) -> None:
        self._bus.hook(self._hear)
        self._loop = asyncio.create_task(self._claim_forever(), name=f"claim {self.engine.name}")

    def close(self) -> None:
        """Claim no more; what runs goes on."""
        self._is_stopping = True
        self._wake.set()

    async def stop(self) -> None:
        """Claim no more, let running jobs end for a while, put the rest back in the queue."""
        self.close()
        if self._loop:
            # A claim under way may already be written: cut off, it would have no worker.
            await asyncio.wait([self._loop], timeout=self._patience.drain_s)
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        tasks = [run.task for run in self._running.values() if run.task]
        if tasks:
            await asyncio.wait(tasks, timeout=self._patience.drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def running(self) -> int:
        return len(self._running)

    def is_running(self, prediction: Prediction) -> bool:
        """Whether this very start of the prediction is at work here."""
        return _start(prediction) in self._running

    def _hear(self, event: Event) -> None:
        match event.kind:
            case EventKind.QUEUED | EventKind.REQUEUED:
                if len(self._running) < self.engine.capacity:  # else the end of a run wakes it
                    self._wake.set()
            case EventKind.FINISHED if event.data.get("status") in ("canceled", "expired"):
                for run in self._running.values():
                    if run.prediction.id == event.prediction_id:
                        run.stop()
            case _:
                pass

    async def _claim_forever(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            is_able = self.engine.trouble is None
            if is_able:
                try:
                    await self._claim_all()
                except Exception:
                    log.exception("claiming for %s failed; trying again", self.engine.name)
            # Not wait_for: on Python 3.11 it forgets a cancel that meets a wake-up.
            with contextlib.suppress(TimeoutError):
                # Nobody tells when an engine comes to be able; asking it costs nothing.
                pause_s = self._patience.poll_s if is_able else self._patience.trouble_s
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _claim_all(self) -> None:
        while len(self._running) < self.engine.capacity and not self._is_stopping:
            at = self._clock()
            until = at + timedelta(seconds=self._patience.lease_s)
            claimed = await self._store.claim(
                self.engine.name, owner=self._owner, at=at, lease_until=until
            )
            if claimed is None:
                return
            prediction, event = claimed
            self._bus.publish(event)
            run = _Run(prediction, self._live.open(prediction))
            self._running[_start(prediction)] = run
            run.task = asyncio.create_task(self._guard(run), name=f"run {prediction.id}")
            # Not in the task itself: one that is cancelled before its first step runs nothing.
            run.task.add_done_callback(partial(self._ended, run))
            log.info("%s started on %s", prediction.id, self.engine.name)

    def _ended(self, run: _Run, task: asyncio.Task[None]) -> None:
        self._live.close(run.prediction.id, run.live)
        self._running.pop(_start(run.prediction), None)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("%s could not be put back", run.prediction.id, exc_info=error)

    async def _guard(self, run: _Run) -> None:
        """Run one prediction to its end, whatever happens."""
        prediction = run.prediction
        try:
            await self._to_the_end(run)
        except (Conflict, NotFound):
            log.info("%s moved on without us", prediction.id)
        except asyncio.CancelledError:
            if not run.is_over:
                await self._put_back(prediction)
        except Exception:
            log.exception("%s could not be brought to an end", prediction.id)

    async def _to_the_end(self, run: _Run) -> None:
        prediction, live = run.prediction, run.live
        try:
            async with asyncio.timeout(self._patience.job_s) as limit:
                outputs, metrics = await self._run(run)
        except TimeoutError as error:
            if not limit.expired():
                await self._unforeseen(prediction, live, error)
                return
            seconds = int(self._patience.job_s)
            failure = TimedOut(f"the run took longer than {seconds} s").failure()
            await self._fail(prediction, live, failure)
        except EngineLost as lost:
            await self._again(prediction, live, lost)
        except (EngineError, FluxserveError) as error:
            if isinstance(error, Conflict):
                raise
            await self._fail(prediction, live, error.failure())
        except Exception as error:
            await self._unforeseen(prediction, live, error)
        else:
            done = replace(prediction, logs=live.logs, served_by=live.served_by)
            await self._written(lambda: self._outcomes.succeed(done, outputs, metrics))
            log.info("%s succeeded", prediction.id)

    async def _written(self, end: Callable[[], Awaitable[object]]) -> None:
        """Write an end down; while the database is away and the lease lasts, try again: what is
        done need not be done a second time."""
        until = time.monotonic() + self._patience.lease_s
        while True:
            try:
                await end()
                return
            except Unavailable as error:
                if time.monotonic() >= until:
                    raise
                log.warning("the end of a run waits: %s", error.message)
                await asyncio.sleep(self._patience.poll_s)

    async def _run(self, run: _Run) -> tuple[list[OutputImage], dict[str, JSON]]:
        """Drive the engine while a heartbeat keeps the lease."""
        prediction, live = run.prediction, run.live
        heart = asyncio.create_task(self._beat(run))
        began = time.monotonic()
        try:
            job = await self._job(prediction)
            live.log(f"Using seed: {job.request.seed}")
            updates = self.engine.run(job)
            async with contextlib.aclosing(updates):
                outputs, metrics = await self._consume(prediction, live, updates, began)
        finally:
            heart.cancel()
            await asyncio.gather(heart, return_exceptions=True)
        if not outputs:
            raise EngineError("the engine ended without a picture")
        metrics.setdefault("predict_s", round(time.monotonic() - began, 6))
        metrics["image_count"] = len(outputs)
        return [outputs[index] for index in sorted(outputs)], metrics

    async def _consume(
        self,
        prediction: Prediction,
        live: Live,
        updates: AsyncGenerator[EngineUpdate, None],
        began: float,
    ) -> tuple[dict[int, OutputImage], dict[str, JSON]]:
        outputs: dict[int, OutputImage] = {}
        metrics: dict[str, JSON] = {}
        async for update in updates:
            match update:
                case Progress():
                    self._progress(prediction, live, update, began)
                case Preview():
                    live.preview = update.image
                    data: dict[str, JSON] = {"step": update.step, "index": update.index}
                    self._tell(prediction, EventKind.PREVIEW, data)
                case Log():
                    live.log(update.text)
                    self._tell(prediction, EventKind.LOG, {"text": update.text})
                case Report():
                    metrics.update(update.metrics)
                    live.served_by = update.served_by or live.served_by
                case Output():
                    outputs[update.index] = await self._outcomes.keep(prediction, update)
        return outputs, metrics

    def _progress(
        self, prediction: Prediction, live: Live, progress: Progress, began: float
    ) -> None:
        if progress.queue_position == 0:
            if not live.has_bar:
                live.log(progress_line(replace(progress, step=0), 0.0))  # clients wait for 0 %
            if progress.step and (not live.progress or live.progress.step != progress.step):
                live.log(progress_line(progress, time.monotonic() - began))
            live.has_bar = True
        live.progress = progress
        data: dict[str, JSON] = {
            "step": progress.step,
            "total": progress.total,
            "eta_s": progress.eta_s,
            "queue_position": progress.queue_position,
        }
        self._tell(prediction, EventKind.PROGRESS, data)

    def _tell(self, prediction: Prediction, kind: EventKind, data: dict[str, JSON]) -> None:
        event = Event(prediction_id=prediction.id, kind=kind, at=self._clock(), data=data)
        self._bus.publish(event)

    async def _job(self, prediction: Prediction) -> Job:
        request = prediction.request
        images, mask = await load_inputs(self._intake, request)
        first = Size(images[0].width, images[0].height) if images else None
        return Job(
            prediction_id=prediction.id,
            attempt=prediction.attempt,
            request=self._catalog.settle(request, first),
            images=images,
            mask=mask,
            key_id=prediction.origin.key_id,
            priority=prediction.priority,
            created_at=prediction.created_at,
            deadline_at=prediction.deadline_at,
        )

    async def _beat(self, run: _Run) -> None:
        """Renew the lease; when it is lost or a cancel was asked for, stop the run."""
        prediction, live = run.prediction, run.live
        while True:
            await asyncio.sleep(self._patience.heartbeat_s)
            until = self._clock() + timedelta(seconds=self._patience.lease_s)
            now = replace(prediction, logs=live.logs, progress=live.fraction)
            try:
                lease = await self._store.renew(now, owner=self._owner, lease_until=until)
                if lease.cancel_requested:
                    await self._outcomes.cancel(now)  # the bus brings it back to us
            except Conflict:
                log.warning("%s: the lease was lost, stopping", prediction.id)
                run.stop()
                return
            except Exception:
                log.exception("%s: a heartbeat failed; trying again", prediction.id)

    async def _again(self, prediction: Prediction, live: Live, lost: EngineLost) -> None:
        if prediction.attempt >= self._patience.attempts_max:
            await self._fail(prediction, live, lost.failure())
            return
        log.warning("%s: %s; it goes back to the queue", prediction.id, lost.message)
        await self._written(lambda: self._outcomes.requeue(prediction))

    async def _unforeseen(self, prediction: Prediction, live: Live, error: Exception) -> None:
        log.error("%s failed in an unforeseen way", prediction.id, exc_info=error)
        failure = Failure(code=ErrorCode.INTERNAL, message="an unforeseen error ended the run")
        await self._fail(prediction, live, failure)

    async def _fail(self, prediction: Prediction, live: Live, failure: Failure) -> None:
        done = replace(prediction, logs=live.logs, served_by=live.served_by)
        await self._written(lambda: self._outcomes.fail(done, failure))
        log.info("%s failed: %s", prediction.id, failure.code)

    async def _put_back(self, prediction: Prediction) -> None:
        with contextlib.suppress(Conflict, NotFound):
            await asyncio.shield(self._outcomes.requeue(prediction))
            log.info("%s went back to the queue", prediction.id)


def _start(prediction: Prediction) -> tuple[str, int]:
    return prediction.id, prediction.attempt
