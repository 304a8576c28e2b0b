"""The heart of the engine process: one turn is admit, schedule, run, retire. No torch.

    socket ──> inbox ──> admit ──> encode lane ──> scheduler ──> forward ──> decode lane ──> send

One thread owns the scheduler and the runs; everybody else leaves a message in the inbox.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic

from fluxserve.core.errors import EngineError, ErrorCode, FluxserveError
from fluxserve.core.ports import EncodedImage
from fluxserve.engines.local.attempt import advance, outcome, told
from fluxserve.engines.local.policy import Forecast, Step
from fluxserve.engines.local.run import (
    Arrived,
    Decoded,
    DeviceLost,
    Encoded,
    Glimpsed,
    H,
    Lane,
    LaneFailed,
    LaneFull,
    News,
    NoRoom,
    Run,
    Spoiled,
    Stop,
    Worker,
)
from fluxserve.engines.local.scheduler import Scheduler
from fluxserve.engines.local.wire import Cancel, Ended, Glimpse, Made, Moved, Note, Order, Up

log = logging.getLogger(__name__)

CANCELED = "canceled"
TELL_S = 0.1  # progress of a job is told at most this often
FORESEE_S = 0.5  # places in the queue are worked out at most this often
RETRIES_MAX = 1  # of a step with one sample that fails for no known reason

Send = Callable[[Up, Sequence[bytes]], None]
Keep = Callable[[str, int, EncodedImage], str]  # stores a finished picture, returns its key


class Loop(Generic[H]):
    """Runs jobs until it is told to stop."""

    def __init__(
        self,
        *,
        worker: Worker[H],
        scheduler: Scheduler,
        encoding: Lane,
        decoding: Lane,
        send: Send,
        keep: Keep,
        clock: Callable[[], float],
        preview_steps: int = 0,
        spare: Callable[[], bool] = lambda: False,
    ) -> None:
        """`spare`: a short piece of work for when there is no job; False: there is none left."""
        self._worker = worker
        self._scheduler = scheduler
        self._encoding, self._decoding = encoding, decoding
        self._send, self._keep, self._clock = send, keep, clock
        self._preview_steps = preview_steps
        self._spare = spare
        self._inbox: SimpleQueue[News[H]] = SimpleQueue()
        self._runs: dict[str, Run[H]] = {}
        self._forecasts: Mapping[str, Forecast] = {}
        self._foreseen_at = -FORESEE_S
        self._is_stopping = False
        self.expected_s = 0.0  # the longest piece of work for those who are here; read by others

    # --- from other threads -----------------------------------------------------------------------

    def submit(self, order: Order, files: Sequence[bytes]) -> None:
        self._inbox.put(Arrived(order, files))

    def cancel(self, job_id: str) -> None:
        self._inbox.put(Cancel(id=job_id))

    def stop(self) -> None:
        self._inbox.put(Stop())

    # --- turns ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`; DeviceLost when only a new process can go on."""
        while not self._is_stopping:
            self.turn(wait=True)

    def turn(self, *, wait: bool) -> bool:
        """Admit what came, run one step; False when there was none. With `wait`, wait for news."""
        self._hear()
        now = self._clock()
        step = self._scheduler.schedule(now)
        if step is None:
            if wait and not self._is_stopping and (self._runs or not self._spare()):
                self._take(self._inbox.get())
            return False
        self._foresee(now)
        self._step(step)
        return True

    def _hear(self) -> None:
        while True:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            self._take(message)

    def _take(self, message: News[H]) -> None:
        match message:
            case Arrived(order=order, files=files):
                self._admit(order, files)
            case Cancel(id=job_id):
                self._drop(job_id)
            case Encoded(run=run, samples=samples, seconds=seconds):
                run.in_lanes -= 1
                run.encode_s += seconds
                run.samples = dict(zip(run.order.indexes, samples, strict=False))
                self._scheduler.charge(run.id, seconds)
                self._scheduler.make_ready(run.id)
                self._settle(run)
            case Decoded(run=run, seconds=seconds):
                run.in_lanes -= 1
                run.decode_s += seconds
                run.left -= 1
                self._settle(run)
            case Glimpsed(run=run):
                run.in_lanes -= 1
                self._settle(run)
            case LaneFailed(run=run, error=error):
                if isinstance(error, DeviceLost):
                    raise error
                run.in_lanes -= 1
                self._fail(run, error)
            case LaneFull():
                self._give_again(message)
            case Stop():
                self._is_stopping = True

    # --- admit ------------------------------------------------------------------------------------

    def _admit(self, order: Order, files: Sequence[bytes]) -> None:
        try:
            plan = self._worker.plan(order)
        except FluxserveError as error:
            self._end(order.id, error.code, error.message, error.field)
            return
        now = self._clock()
        run = Run[H](order=order, files=files, plan=plan, arrived=now, left=len(order.indexes))
        self._runs[run.id] = run
        for note in plan.notes:
            self._send(Note(id=run.id, text=note), ())
        for index in order.indexes:
            self._scheduler.add(run.sample(index, self._worker.batch_class), ready=False)
        self._expect([run], self._scheduler.step_s(run.id))
        self._give(self._encoding, run, lambda: self._encode(run))

    def _encode(self, run: Run[H]) -> Encoded[H]:
        began = self._clock()
        samples: Sequence[H] = ()
        if not run.is_over:
            samples = self._worker.encode(
                run.order,
                run.files,
                run.plan,
                lambda text: self._send(Note(id=run.id, text=text), ()),
            )
        return Encoded(run, samples, self._clock() - began)

    def _give(
        self,
        lane: Lane,
        run: Run[H],
        work: Callable[[], Encoded[H] | Decoded[H] | Glimpsed[H]],
    ) -> None:
        """Let a lane work for a run; what comes of it, good or bad, goes to the inbox."""

        run.in_lanes += 1
        lane.give(lambda: self._inbox.put(outcome(lane, run, work)))

    def _give_again(self, full: LaneFull[H]) -> None:
        """A lane's work that found no room, once more: steps wait, so none is in its way."""
        log.warning("%s: out of memory beside the steps; they wait for it", full.run.id)
        self._worker.make_room()
        told = SimpleQueue[News[H]]()
        full.lane.give(lambda: told.put(outcome(full.lane, full.run, full.work, is_last=True)))
        self._take(told.get())

    def _expect(self, runs: Iterable[Run[H]], seconds: float) -> None:
        """A step of these runs is foreseen to take so long; what lanes do for a run takes less."""
        for run in runs:
            run.step_s = max(run.step_s, seconds)
        self.expected_s = max((run.step_s for run in self._runs.values()), default=0.0)

    # --- run --------------------------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        """One forward; where it fails the culprit fails alone and the others go on."""
        pending = [step]
        while pending:
            pending[:1] = self._attempt(pending[0])

    def _attempt(self, step: Step) -> Sequence[Step]:
        """One forward; the steps to try instead where it failed."""
        members = [
            (self._runs[job_id], int(index))
            for job_id, _, index in (id_.rpartition("/") for id_ in step.sample_ids)
            if job_id in self._runs and not self._runs[job_id].is_over
        ]
        if not members:
            return ()
        self._expect([run for run, _ in members], step.seconds)
        began = self._clock()
        failure = advance(self._worker, [run.samples[index] for run, index in members])
        if failure is None:
            self._retire(step, members, began)
            return ()
        if failure.is_full:
            return self._lessen(step, members[0][0])
        for place in failure.spoiled:
            run, _ = members[place]
            self._fail(run, told(Spoiled((place,))))
        return () if failure.spoiled else self._search(step, members[0][0], failure.trace)

    def _lessen(self, step: Step, first: Run[H]) -> Sequence[Step]:
        """A step had no room: a smaller one; a single request once more with what was spared."""
        self._worker.make_room()
        smaller = self._scheduler.shrink(step)
        if smaller is not None:
            log.warning("out of memory: from %d rows to %d", step.load.rows, smaller.load.rows)
            return (smaller,)
        if not first.is_starved:
            first.is_starved = True
            return (step,)
        self._fail(first, told(NoRoom()))
        return ()

    def _search(self, step: Step, first: Run[H], trace: str) -> Sequence[Step]:
        """A step failed for no known reason: halve it until the culprit is found."""
        halves = self._scheduler.halves(step)
        if halves:
            return halves
        first.retries += 1
        log.error("%s: a step failed\n%s", first.id, trace)
        if first.retries > RETRIES_MAX:
            self._fail(first, EngineError("the engine failed on this request"))
        return ()

    def _retire(self, step: Step, members: Sequence[tuple[Run[H], int]], began: float) -> None:
        now = self._clock()
        done = {sample.id for sample in self._scheduler.finish(step, max(now - began, 1e-9))}
        levels = {move.sample_id: move.levels for move in step.moves}
        for run, index in members:
            before = run.levels.get(index, 0)
            run.levels[index] = before + levels[f"{run.id}/{index}"]
            run.calls += 1
            run.shared += len(members)
            run.first_step_at = began if run.first_step_at is None else run.first_step_at
            run.last_step_at = now
            run.is_starved = False
            self._show(run, index, before)
            if f"{run.id}/{index}" in done:
                sample = run.samples.pop(index)
                self._give(self._decoding, run, partial(self._decode, run, index, sample))
        for run in dict.fromkeys(run for run, _ in members):
            self._tell(run, now)

    def _show(self, run: Run[H], index: int, before: int) -> None:
        """A preview every so many levels, of an output that is not done; a step may be several."""
        every = run.order.preview_steps or self._preview_steps
        at = run.levels[index]
        if not every or at // every == before // every or at >= run.steps_each:
            return
        look = self._worker.glimpse(run.samples[index], run.plan)
        if look is not None:
            self._give(self._decoding, run, lambda: self._glimpse(run, index, at, look))

    def _glimpse(
        self, run: Run[H], index: int, step: int, look: Callable[[], EncodedImage]
    ) -> Glimpsed[H]:
        if not run.is_over:
            image = look()
            self._send(
                Glimpse(
                    id=run.id,
                    index=index,
                    step=step,
                    mime=image.mime,
                    width=image.width,
                    height=image.height,
                ),
                (image.data,),
            )
        return Glimpsed(run)

    def _decode(self, run: Run[H], index: int, sample: H) -> Decoded[H]:
        began = self._clock()
        if not run.is_over:
            image = self._worker.decode(run.order, run.files, run.plan, sample)
            key = self._keep(run.id, index, image)
            self._send(
                Made(
                    id=run.id,
                    index=index,
                    key=key,
                    mime=image.mime,
                    width=image.width,
                    height=image.height,
                    seed=(run.order.seed + index) % 2**32,
                ),
                (),
            )
        return Decoded(run, self._clock() - began)

    # --- tell -------------------------------------------------------------------------------------

    def _tell(self, run: Run[H], now: float) -> None:
        step = run.steps // run.outputs
        if now - run.told_at < TELL_S and step < run.steps_each:
            return
        run.told_at, run.told_position = now, 0
        forecast = self._forecasts.get(run.id)
        eta = None if forecast is None else max(0.0, forecast.finish_at - now)
        self._send(Moved(id=run.id, step=step, total=run.steps_each, eta_s=eta, position=0), ())

    def _foresee(self, now: float) -> None:
        """Work out who is when done, and tell those in the queue whose place has changed."""
        if now - self._foreseen_at < FORESEE_S:
            return
        self._foreseen_at = now
        self._forecasts = self._scheduler.forecasts(now)
        for run in self._runs.values():
            forecast = self._forecasts.get(run.id)
            if forecast is None or run.steps:
                continue
            position = forecast.position + 1
            if position != run.told_position or now - run.told_at >= 10 * FORESEE_S:
                run.told_position, run.told_at = position, now
                eta = max(0.0, forecast.finish_at - now)
                self._send(
                    Moved(id=run.id, step=0, total=run.steps_each, eta_s=eta, position=position),
                    (),
                )

    # --- end --------------------------------------------------------------------------------------

    def _drop(self, job_id: str) -> None:
        """Cancel; answered even when the job is not known any more."""
        run = self._runs.get(job_id)
        if run is None:
            self._end(job_id, CANCELED, "", None)
            return
        run.is_canceled = True
        self._scheduler.cancel(job_id)
        self._settle(run)

    def _fail(self, run: Run[H], error: Exception) -> None:
        if not isinstance(error, FluxserveError):
            log.error("%s failed", run.id, exc_info=error)
        run.failure = run.failure or told(error)
        self._scheduler.cancel(run.id)
        self._settle(run)

    def _settle(self, run: Run[H]) -> None:
        """End a run once no lane works for it any more and it is made, cancelled or failed."""
        if run.in_lanes or run.id not in self._runs or not (run.is_over or not run.left):
            return
        del self._runs[run.id]
        run.samples.clear()
        self._expect((), 0.0)
        self._worker.release(run.id)
        if run.is_canceled:
            self._end(run.id, CANCELED, "", None)
        elif run.failure is not None:
            self._end(run.id, run.failure.code, run.failure.message, run.failure.field)
        else:
            metrics = run.metrics(self._clock()) | dict(self._worker.facts())
            self._send(Ended(id=run.id, metrics=metrics), ())

    def _end(self, job_id: str, code: ErrorCode | str, message: str, field: str | None) -> None:
        ended = Ended(id=job_id, code=str(code), message=message, field_name=field or "")
        self._send(ended, ())
