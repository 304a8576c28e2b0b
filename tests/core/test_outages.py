"""The database away for a moment: what was made is not made again, and nobody fails for it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence

import pytest

from fluxserve.core.access import OPEN_CALLER
from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import EngineError, Unavailable
from fluxserve.core.events import Event, EventKind
from fluxserve.core.outcomes import Outcomes
from fluxserve.core.ports import EngineUpdate, Job, Output, PredictionStore
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import ImageParams, Origin
from fluxserve.storage.predictions import SqlPredictionStore
from tests.core.conftest import PIXEL, Bench, until

S = PredictionStatus


class Faltering(SqlPredictionStore):
    """Answers only once it was asked in vain `away` times for an end, or for an output's event."""

    away = 0

    def _falter(self, kind: EventKind, which: EventKind) -> None:
        if kind is which and self.away:
            self.away -= 1
            raise Unavailable("the database does not answer")

    async def move(
        self,
        before: Prediction,
        after: Prediction,
        event: Event,
        deliveries: Sequence[Delivery] = (),
    ) -> Event:
        self._falter(event.kind, EventKind.FINISHED)
        return await super().move(before, after, event, deliveries)


class Mute(Faltering):
    async def append(self, event: Event, *, attempt: int) -> Event:
        self._falter(event.kind, EventKind.OUTPUT)
        return await super().append(event, attempt=attempt)


def outcomes_of(bench: Bench, store: PredictionStore) -> Outcomes:
    return Outcomes(store=store, blobs=bench.blobs, bus=bench.bus, clock=bench.clock)


async def create(bench: Bench) -> Prediction:
    params = ImageParams(model="flux-dev", prompt="a fox")
    return await bench.service.create(params, Origin(dialect="native"), OPEN_CALLER)


async def refused(job: Job) -> AsyncGenerator[EngineUpdate, None]:
    raise EngineError("no")
    yield


@pytest.mark.parametrize("is_bad", [False, True])
async def test_an_end_that_cannot_be_written_yet_is_written_later(
    bench: Bench, is_bad: bool
) -> None:
    if is_bad:
        bench.engine.script = refused
    store = Faltering(bench.store._database)
    store.away = 3
    bench.outcomes = outcomes_of(bench, store)
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    done = await bench.service.wait((await create(bench)).id, 5)
    await dispatcher.stop()
    assert done.status is (S.FAILED if is_bad else S.SUCCEEDED)
    assert (store.away, done.attempt, len(bench.engine.jobs)) == (0, 1, 1)


async def test_an_end_is_left_to_the_next_start_when_the_lease_is_over(bench: Bench) -> None:
    store = Faltering(bench.store._database)
    store.away = 10_000
    bench.outcomes = outcomes_of(bench, store)
    dispatcher = bench.dispatcher(lease_s=0.1)
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: bool(bench.engine.jobs))
    await until(lambda: dispatcher.running == 0)
    await dispatcher.stop()
    assert (await bench.store.get(prediction.id)).status is S.RUNNING


async def test_a_picture_of_which_nobody_can_be_told_is_a_picture_all_the_same(
    bench: Bench,
) -> None:
    store = Mute(bench.store._database)
    store.away = 1
    bench.outcomes = outcomes_of(bench, store)
    dispatcher = bench.dispatcher()
    await dispatcher.start()
    done = await bench.service.wait((await create(bench)).id, 5)
    await dispatcher.stop()
    assert done.status is S.SUCCEEDED
    assert len(done.outputs) == 1


async def test_a_prediction_that_another_server_deleted_ends_here_without_an_error(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    go = asyncio.Event()

    async def script(job: Job) -> AsyncGenerator[EngineUpdate, None]:
        await go.wait()
        yield Output(index=0, image=PIXEL, seed=1)

    bench.engine.script = script
    dispatcher = bench.dispatcher(heartbeat_s=60.0)
    await dispatcher.start()
    prediction = await create(bench)
    await until(lambda: dispatcher.running == 1 and bench.engine.running == 1)
    running = await bench.store.get(prediction.id)
    canceled = running.cancel(bench.clock())
    event = Event(prediction_id=prediction.id, kind=EventKind.FINISHED, at=bench.clock())
    await bench.store.move(running, canceled, event)
    await bench.store.delete(prediction.id)
    go.set()
    await until(lambda: dispatcher.running == 0)
    await dispatcher.stop()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
