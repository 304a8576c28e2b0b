"""The life of a prediction through service and dispatcher: to every end it can have."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta

import pytest

from fluxserve.core.access import OPEN_CALLER, ApiKey, Caller
from fluxserve.core.errors import (
    Conflict,
    EngineError,
    EngineLost,
    ErrorCode,
    NotFound,
    OutputRefused,
    QueueFull,
    RateLimited,
)
from fluxserve.core.events import EventKind
from fluxserve.core.keeper import Retention
from fluxserve.core.ports import EngineUpdate, Idempotency, Job, Log, Progress, Query, Report
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import ImageInput, ImageParams, Origin, WebhookSpec
from tests.core.conftest import Bench, one_picture, until

S = PredictionStatus


async def create(bench: Bench, **more: object) -> Prediction:
    said = {"model": "flux-dev", "prompt": "a fox", **more}
    origin = Origin(dialect="native")
    return await bench.service.create(ImageParams(**said), origin, OPEN_CALLER)  # type: ignore[arg-type]


async def finished(bench: Bench, prediction: Prediction) -> Prediction:
    done = await bench.service.wait(prediction.id, 5)
    assert done.is_terminal
    return done


async def forever(job: Job) -> AsyncGenerator[EngineUpdate, None]:
    yield Progress(step=1, total=9, eta_s=3.0)
    await asyncio.Event().wait()


async def test_a_prediction_is_made_and_everything_is_written_down(bench: Bench) -> None:
    async def script(job: Job) -> AsyncGenerator[EngineUpdate, None]:
        yield Log(text="hello")
        async for update in one_picture(job):
            yield update
        yield Report(metrics={"model_calls": 4}, served_by="somebody")

    bench.engine.script = script
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    done = await finished(bench, await create(bench, seed=11))
    await dispatcher.stop()
    assert done.status is S.SUCCEEDED
    assert done.served_by == "somebody"
    assert done.outputs[0].seed == 11
    assert await bench.blobs.get(done.outputs[0].blob.key) == b"pixel"
    assert done.metrics["model_calls"] == 4
    assert done.logs.startswith("Using seed: 11\nhello\n")
    assert "100%|" in done.logs
    kinds = [event.kind for event in await bench.store.events(done.id)]
    assert kinds == [EventKind.QUEUED, EventKind.STARTED, EventKind.OUTPUT, EventKind.FINISHED]


async def test_work_begins_as_soon_as_the_engine_can(bench: Bench) -> None:
    bench.engine.trouble = "the model is being loaded"
    dispatcher = bench.dispatcher(poll_s=60.0)
    await dispatcher.start()
    prediction = await create(bench)
    await asyncio.sleep(0.1)
    assert not bench.engine.jobs
    bench.engine.trouble = None
    assert (await finished(bench, prediction)).status is S.SUCCEEDED
    await dispatcher.stop()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("no"), ErrorCode.ENGINE_FAILED),
        (OutputRefused("nsfw"), ErrorCode.OUTPUT_REFUSED),
        (ZeroDivisionError("a bug"), ErrorCode.INTERNAL),
    ],
)
async def test_an_error_of_the_engine_fails_the_prediction_and_nothing_else(
    bench: Bench, error: Exception, code: ErrorCode
) -> None:
    async def script(job: Job) -> AsyncGenerator[EngineUpdate, None]:
        if job.request.prompt == "bad":
            raise error
        async for update in one_picture(job):
            yield update

    bench.engine.script = script
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    bad = await create(bench, prompt="bad")
    good = await create(bench)
    done = await finished(bench, bad)
    assert done.status is S.FAILED
    assert done.failure is not None
    assert done.failure.code is code
    assert "bug" not in done.failure.message
    assert (await finished(bench, good)).status is S.SUCCEEDED
    await dispatcher.stop()


async def test_an_input_that_cannot_be_fetched_fails_the_prediction(bench: Bench) -> None:
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    images = (ImageInput(url="https://gone.example/a.png"),)
    done = await finished(bench, await create(bench, model="flux-kontext-dev", images=images))
    await dispatcher.stop()
    assert done.failure is not None
    assert done.failure.code is ErrorCode.INPUT_UNREACHABLE


async def test_a_cancelled_prediction_leaves_nothing_running(bench: Bench) -> None:
    bench.engine.script = forever
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: bench.engine.running == 1)
    answered = await bench.service.cancel(prediction.id)
    assert answered.status is S.CANCELED
    await until(lambda: bench.engine.running == 0)
    await dispatcher.stop()
    assert (await bench.service.get(prediction.id)).status is S.CANCELED


async def test_cancelling_a_finished_prediction_changes_nothing(bench: Bench) -> None:
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    done = await finished(bench, await create(bench))
    assert await bench.service.cancel(done.id) == done
    await dispatcher.stop()


async def test_a_lost_device_is_followed_by_another_attempt_with_the_same_seed(
    bench: Bench,
) -> None:
    async def script(job: Job) -> AsyncGenerator[EngineUpdate, None]:
        if job.attempt == 1:
            raise EngineLost("the device fell off")
        async for update in one_picture(job):
            yield update

    bench.engine.script = script
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    done = await finished(bench, await create(bench))
    await dispatcher.stop()
    assert done.status is S.SUCCEEDED
    assert [job.attempt for job in bench.engine.jobs] == [1, 2]
    assert len({job.request.seed for job in bench.engine.jobs}) == 1


async def test_a_device_that_is_always_lost_ends_the_prediction(bench: Bench) -> None:
    async def script(job: Job) -> AsyncGenerator[EngineUpdate, None]:
        raise EngineLost("the device fell off")
        yield

    bench.engine.script = script
    dispatcher = bench.dispatcher(attempts_max=2)
    await dispatcher.start()
    done = await finished(bench, await create(bench))
    await dispatcher.stop()
    assert done.status is S.FAILED
    assert len(bench.engine.jobs) == 2


async def test_a_run_that_takes_too_long_fails(bench: Bench) -> None:
    bench.engine.script = forever
    dispatcher = bench.dispatcher(job_s=0.05)
    await dispatcher.start()
    done = await finished(bench, await create(bench))
    await dispatcher.stop()
    assert done.failure is not None
    assert done.failure.code is ErrorCode.TIMED_OUT
    assert bench.engine.running == 0


async def test_a_stop_puts_running_work_back_in_the_queue(bench: Bench) -> None:
    bench.engine.script = forever
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: bench.engine.running == 1)
    await dispatcher.stop()
    now = await bench.service.get(prediction.id)
    assert now.status is S.QUEUED
    assert bench.engine.running == 0


async def test_a_worker_whose_lease_was_taken_writes_nothing(bench: Bench) -> None:
    gate = asyncio.Event()

    async def script(job: Job) -> AsyncGenerator[EngineUpdate, None]:
        await gate.wait()
        async for update in one_picture(job):
            yield update

    bench.engine.script = script
    dispatcher = bench.dispatcher(heartbeat_s=60)
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: bench.engine.running == 1)
    running = await bench.store.get(prediction.id)
    await dispatcher_off(bench, running)
    gate.set()
    await until(lambda: bench.engine.running == 0)
    await dispatcher.stop()
    now = await bench.store.get(prediction.id)
    assert now.attempt == 2
    assert now.outputs == ()


async def dispatcher_off(bench: Bench, running: Prediction) -> None:
    """Somebody else takes the prediction over: requeue and start of attempt 2."""
    await bench.outcomes.requeue(running)
    at = bench.clock()
    claimed = await bench.store.claim(
        "told", owner="other", at=at, lease_until=at + timedelta(seconds=30)
    )
    assert claimed is not None


async def test_a_heartbeat_tells_a_worker_that_its_prediction_was_cancelled_elsewhere(
    bench: Bench,
) -> None:
    bench.engine.script = forever
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: bench.engine.running == 1)
    await bench.store.ask_cancel(prediction.id)
    assert (await finished(bench, prediction)).status is S.CANCELED
    await until(lambda: bench.engine.running == 0)
    await dispatcher.stop()


async def test_an_expired_lease_brings_a_prediction_back(bench: Bench) -> None:
    prediction = await create(bench)
    at = bench.clock()
    await bench.store.claim("told", owner="dead", at=at, lease_until=at + timedelta(seconds=30))
    keeper = bench.keeper()
    await keeper.recover()
    assert (await bench.service.get(prediction.id)).status is S.RUNNING
    bench.clock.at += timedelta(seconds=31)  # type: ignore[attr-defined]
    await keeper.recover()
    assert (await bench.service.get(prediction.id)).status is S.QUEUED


async def test_a_prediction_that_kills_its_worker_every_time_is_given_up(bench: Bench) -> None:
    prediction = await create(bench)
    keeper = bench.keeper()
    for _ in range(3):
        at = bench.clock()
        await bench.store.claim("told", owner="dead", at=at, lease_until=at + timedelta(seconds=1))
        bench.clock.at += timedelta(seconds=2)  # type: ignore[attr-defined]
        await keeper.recover()
    now = await bench.service.get(prediction.id)
    assert now.status is S.FAILED
    assert now.failure is not None
    assert "given up" in now.failure.message


async def test_a_deadline_expires_what_waits_and_cancels_what_runs(bench: Bench) -> None:
    origin = Origin(dialect="native")
    params = ImageParams(model="flux-dev", prompt="a fox")
    rows = [
        await bench.service.create(params, origin, OPEN_CALLER, deadline_s=10) for _ in range(2)
    ]
    at = bench.clock()
    claimed = await bench.store.claim(
        "told", owner="w", at=at, lease_until=at + timedelta(seconds=90)
    )
    assert claimed is not None
    bench.clock.at += timedelta(seconds=11)  # type: ignore[attr-defined]
    await bench.keeper().recover()
    found = {(await bench.service.get(row.id)).status for row in rows}
    assert found == {S.CANCELED, S.EXPIRED}


async def test_old_outputs_go_and_the_record_stays_until_its_own_time(bench: Bench) -> None:
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    done = await finished(bench, await create(bench))
    await dispatcher.stop()
    keeper = bench.keeper(Retention(files_s=100, predictions_s=1000))
    bench.clock.at += timedelta(seconds=101)  # type: ignore[attr-defined]
    await keeper.sweep()
    stripped = await bench.service.get(done.id)
    assert stripped.data_removed
    assert stripped.outputs == ()
    with pytest.raises(NotFound):
        await bench.blobs.get(done.outputs[0].blob.key)
    bench.clock.at += timedelta(seconds=1000)  # type: ignore[attr-defined]
    await keeper.sweep()
    with pytest.raises(NotFound):
        await bench.service.get(done.id)


async def test_the_queue_has_an_end(bench: Bench) -> None:
    for _ in range(5):
        await create(bench)
    with pytest.raises(QueueFull):
        await create(bench)


async def test_a_key_has_only_so_many_predictions_at_once(bench: Bench) -> None:
    key = ApiKey(id="k", name="", prefix="", hash="h", created_at=bench.clock(), concurrency_max=1)
    origin = Origin(dialect="native", key_id="k")
    params = ImageParams(model="flux-dev", prompt="a fox")
    await bench.service.create(params, origin, Caller(key=key))
    with pytest.raises(RateLimited):
        await bench.service.create(params, origin, Caller(key=key))


async def test_one_name_for_a_request_makes_one_prediction(bench: Bench) -> None:
    origin = Origin(dialect="native", key_id="k")
    params = ImageParams(model="flux-dev", prompt="a fox")
    name = Idempotency(key="order-1", body_hash="a" * 64)
    both = await asyncio.gather(
        *(bench.service.create(params, origin, OPEN_CALLER, idempotency=name) for _ in range(2))
    )
    assert both[0].id == both[1].id
    assert len(await bench.service.page(Query())) == 1
    with pytest.raises(Conflict):
        await bench.service.create(
            params, origin, OPEN_CALLER, idempotency=replace(name, body_hash="b" * 64)
        )


async def test_anothers_prediction_is_not_there(bench: Bench) -> None:
    prediction = await create(bench)
    other = ApiKey(id="o", name="", prefix="", hash="h", created_at=bench.clock())
    for ask in (bench.service.get, bench.service.cancel):
        with pytest.raises(NotFound):
            await ask(prediction.id, Caller(key=other))


async def test_following_replays_what_was_and_ends_with_the_end(bench: Bench) -> None:
    dispatcher = bench.dispatcher()
    prediction = await create(bench)
    seen = []

    async def watch() -> None:
        seen.extend([event async for event in bench.service.follow(prediction.id)])

    watching = asyncio.create_task(watch())
    await dispatcher.start()
    await asyncio.wait_for(watching, 5)
    await dispatcher.stop()
    numbers = [event.seq for event in seen if event.seq]
    assert numbers == sorted(set(numbers))
    assert seen[0].kind is EventKind.QUEUED
    assert seen[-1].kind is EventKind.FINISHED
    late = [event async for event in bench.service.follow(prediction.id, after=numbers[-2])]
    assert [event.kind for event in late] == [EventKind.FINISHED]


async def test_a_closing_server_sends_waiters_home_with_what_there_is(bench: Bench) -> None:
    prediction = await create(bench)
    waiting = asyncio.create_task(bench.service.wait(prediction.id, 60))
    await asyncio.sleep(0)
    bench.bus.close()
    assert (await asyncio.wait_for(waiting, 5)).status is S.QUEUED


async def test_the_outlook_counts_those_before(bench: Bench) -> None:
    rows = []
    for _ in range(3):
        rows.append(await create(bench))
        bench.clock.at += timedelta(seconds=1)  # type: ignore[attr-defined]
    outlook = await bench.service.outlook(rows[2])
    assert outlook.queue_position == 2
    assert outlook.eta_s == pytest.approx(6.0)


async def test_the_outlook_counts_what_the_engine_holds(bench: Bench) -> None:
    """Some run, some wait inside it; whoever is still in the queue comes after them all."""
    held = [await create(bench) for _ in range(3)]
    for place, prediction in enumerate(held):
        board = bench.live.open(prediction)
        board.progress = Progress(step=0, total=28, queue_position=place, eta_s=7.0 * (place + 1))
        running = await bench.store.claim(
            prediction.engine, owner="me", at=bench.clock(), lease_until=bench.clock()
        )
        assert running
    last = await create(bench)
    outlook = await bench.service.outlook(last)
    assert outlook.queue_position == 2  # the two that wait inside
    assert outlook.eta_s == pytest.approx(21.0 + 2.0)


async def test_nothing_is_left_of_one_that_ended(bench: Bench) -> None:
    """Not even while the engine's last word about it is still on the board."""
    prediction = await create(bench)
    board = bench.live.open(prediction)
    board.progress = Progress(step=27, total=28, queue_position=1, eta_s=0.008)
    assert (await bench.service.outlook(prediction)).eta_s == 0.008
    ended = await bench.service.cancel(prediction.id)
    outlook = await bench.service.outlook(ended)
    assert (outlook.queue_position, outlook.eta_s) == (0, 0.0)


async def test_webhook_messages_are_planned_with_the_moves_they_tell_of(bench: Bench) -> None:
    from fluxserve.storage.deliveries import SqlDeliveryStore

    webhook = WebhookSpec(url="https://hook.example", events=("start", "completed"))
    origin = Origin(dialect="native", webhook=webhook)
    params = ImageParams(model="flux-dev", prompt="a fox")
    prediction = await bench.service.create(params, origin, OPEN_CALLER)
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    await finished(bench, prediction)
    await dispatcher.stop()
    outbox = SqlDeliveryStore(bench.store._database)
    kinds = {delivery.kind for delivery in await outbox.page(prediction_id=prediction.id)}
    assert kinds == {"start", "completed"}


async def test_priority_goes_before_age(bench: Bench) -> None:
    bench.engine.capacity = 1
    origin = Origin(dialect="native")
    params = ImageParams(model="flux-dev", prompt="a fox")
    first = await bench.service.create(params, origin, OPEN_CALLER)
    urgent = await bench.service.create(params, origin, OPEN_CALLER, priority=5)
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    for row in (first, urgent):
        await finished(bench, row)
    await dispatcher.stop()
    assert [job.prediction_id for job in bench.engine.jobs] == [urgent.id, first.id]


async def test_an_engine_in_trouble_is_given_nothing(bench: Bench) -> None:
    bench.engine.trouble = "it loads"
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    prediction = await create(bench)
    with contextlib.suppress(TimeoutError):
        await bench.service.wait(prediction.id, 0.1)
    assert bench.engine.jobs == []
    bench.engine.trouble = None
    assert (await finished(bench, prediction)).status is S.SUCCEEDED
    await dispatcher.stop()
