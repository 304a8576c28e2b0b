"""Ends that meet: cancels before the first step, late leases, stops in the middle of a claim."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import datetime, timedelta

from fluxserve.core.access import OPEN_CALLER
from fluxserve.core.errors import ErrorCode, Unavailable
from fluxserve.core.events import Event, EventKind
from fluxserve.core.keeper import Keeper, Retention
from fluxserve.core.outcomes import Outcomes
from fluxserve.core.ports import EngineUpdate, Job, Progress
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import ImageParams, Origin
from fluxserve.storage.predictions import SqlPredictionStore
from tests.core.conftest import Bench, until

S = PredictionStatus


async def create(bench: Bench) -> Prediction:
    params = ImageParams(model="flux-dev", prompt="a fox")
    return await bench.service.create(params, Origin(dialect="native"), OPEN_CALLER)


async def forever(job: Job) -> AsyncGenerator[EngineUpdate, None]:
    yield Progress(step=1, total=9, eta_s=3.0)
    await asyncio.Event().wait()


def keeper_of(bench: Bench, **more: object) -> Keeper:
    return Keeper(
        store=bench.store,
        files=bench.files,
        blobs=bench.blobs,
        service=bench.service,
        outcomes=bench.outcomes,
        clock=bench.clock,
        retention=Retention(),
        attempts_max=1,
        **more,  # type: ignore[arg-type]
    )


async def test_a_cancel_before_the_first_step_gives_the_place_back(bench: Bench) -> None:
    """The cancel is heard in the turn of the loop between the claim and the task's first step."""
    bench.engine.capacity = 1
    dispatcher = bench.dispatcher()

    def cancel_at_once(event: Event) -> None:
        if event.kind is EventKind.STARTED:
            told = {"status": "canceled"}
            end = replace(event, kind=EventKind.FINISHED, data=told)
            asyncio.get_running_loop().call_soon(bench.bus.publish, end)

    bench.bus.hook(cancel_at_once)
    prediction = await create(bench)
    await dispatcher.start()
    started = await bench.store.get(prediction.id)
    while started.status is not S.RUNNING:
        await asyncio.sleep(0.005)
        started = await bench.store.get(prediction.id)
    await until(lambda: dispatcher.running == 0 and bench.live.get(prediction.id) is None)
    assert bench.engine.jobs == []
    await dispatcher.stop()


async def test_a_second_start_beside_a_first_that_lingers_can_still_be_cancelled(
    bench: Bench,
) -> None:
    """As after a lost lease: the first start ends, and must not take the second one's place."""
    gate = asyncio.Event()

    async def script(job: Job) -> AsyncGenerator[EngineUpdate, None]:
        if job.attempt == 1:
            await gate.wait()
            return
        async for update in forever(job):
            yield update

    bench.engine.script = script
    dispatcher = bench.dispatcher(heartbeat_s=60)
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: bench.engine.running == 1)
    await bench.outcomes.requeue(await bench.store.get(prediction.id))
    await until(lambda: bench.engine.running == 2)
    gate.set()
    await until(lambda: bench.engine.running == 1 and dispatcher.running == 1)
    assert bench.live.get(prediction.id) is not None
    await bench.service.cancel(prediction.id)
    await until(lambda: bench.engine.running == 0 and dispatcher.running == 0)
    await dispatcher.stop()


async def test_what_runs_here_is_not_taken_for_lost_when_the_whole_process_slept(
    bench: Bench,
) -> None:
    bench.engine.script = forever
    dispatcher = bench.dispatcher(heartbeat_s=60)
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: bench.engine.running == 1)
    bench.clock.at += timedelta(hours=1)  # type: ignore[attr-defined]
    await keeper_of(bench, is_running=dispatcher.is_running).recover()
    now = await bench.store.get(prediction.id)
    assert (now.status, now.attempt) == (S.RUNNING, 1)
    await dispatcher.stop()
    assert (await bench.store.get(prediction.id)).status is S.QUEUED


async def test_a_paid_submission_is_never_given_up_for_its_number_of_starts(bench: Bench) -> None:
    prediction = await create(bench)
    at = bench.clock()
    await bench.store.claim("told", owner="dead", at=at, lease_until=at)
    bench.clock.at += timedelta(seconds=1)  # type: ignore[attr-defined]
    await keeper_of(bench, counts_starts=lambda lost: False).recover()
    assert (await bench.store.get(prediction.id)).status is S.QUEUED


async def test_a_stop_in_the_middle_of_a_claim_leaves_nothing_without_a_worker(
    bench: Bench,
) -> None:
    written, gate = asyncio.Event(), asyncio.Event()

    class Slow(SqlPredictionStore):
        """Answers a claim some time after it was written."""

        async def claim(
            self, engine: str, *, owner: str, at: datetime, lease_until: datetime
        ) -> tuple[Prediction, Event] | None:
            claimed = await super().claim(engine, owner=owner, at=at, lease_until=lease_until)
            written.set()
            await gate.wait()
            return claimed

    bench.store = Slow(bench.store._database)
    bench.engine.script = forever
    prediction = await create(bench)
    dispatcher = bench.dispatcher(drain_s=0.2)
    await dispatcher.start()
    await written.wait()
    stopping = asyncio.create_task(dispatcher.stop())
    await asyncio.sleep(0)
    gate.set()
    await stopping
    assert (await bench.store.get(prediction.id)).status is S.QUEUED


async def test_a_cancel_that_cannot_be_written_is_tried_at_the_next_heartbeat(
    bench: Bench,
) -> None:
    bench.engine.script = forever
    failures = [Unavailable("the disk is full"), Unavailable("still")]

    class Failing(Outcomes):
        """Cannot cancel at first."""

        async def cancel(self, before: Prediction) -> Prediction:
            if failures:
                raise failures.pop()
            return await super().cancel(before)

    bench.outcomes = Failing(store=bench.store, blobs=bench.blobs, bus=bench.bus, clock=bench.clock)
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: bench.engine.running == 1)
    await bench.store.ask_cancel(prediction.id)
    assert (await bench.service.wait(prediction.id, 5)).status is S.CANCELED
    await until(lambda: dispatcher.running == 0)
    await dispatcher.stop()


async def test_a_timeout_inside_the_engine_is_not_taken_for_our_own(bench: Bench) -> None:
    async def script(job: Job) -> AsyncGenerator[EngineUpdate, None]:
        if job.attempt == 1:
            raise TimeoutError("a socket")
        yield Progress(step=1, total=1)

    bench.engine.script = script
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    prediction = await create(bench)
    done = await bench.service.wait(prediction.id, 5)
    await dispatcher.stop()
    assert done.failure is not None
    assert done.failure.code is ErrorCode.INTERNAL


async def test_a_listener_that_fails_harms_nobody(bench: Bench) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError

    bench.bus.hook(broken)
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    prediction = await create(bench)
    assert (await bench.service.wait(prediction.id, 5)).status is S.SUCCEEDED
    await dispatcher.stop()
