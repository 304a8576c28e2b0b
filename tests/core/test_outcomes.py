"""What a start writes that the prediction has moved on from."""

from datetime import timedelta

import pytest

from fluxserve.core.errors import Conflict, NotFound
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ports import EncodedImage, Output
from fluxserve.core.prediction import Prediction
from tests.contracts.material import event, finished, prediction
from tests.core.conftest import Bench

LATE = Output(
    index=0, image=EncodedImage(data=b"late", mime="image/png", width=1, height=1), seed=1
)
GOOD = Output(
    index=0, image=EncodedImage(data=b"good", mime="image/png", width=1, height=1), seed=1
)


async def claim(bench: Bench) -> Prediction:
    at = bench.clock()
    claimed = await bench.store.claim(
        "local", owner="w", at=at, lease_until=at + timedelta(seconds=30)
    )
    assert claimed is not None
    return claimed[0]


async def outputs(bench: Bench, of: Prediction) -> list[Event]:
    return [told for told in await bench.store.events(of.id) if told.kind is EventKind.OUTPUT]


@pytest.mark.parametrize("is_done", [True, False])
async def test_a_picture_of_an_older_start_writes_over_nothing(bench: Bench, is_done: bool) -> None:
    one = prediction()
    await bench.store.add(one, event(one))
    stale = await claim(bench)
    await bench.outcomes.requeue(stale)
    fresh = await claim(bench)
    good = await bench.outcomes.keep(fresh, GOOD)
    if is_done:
        await bench.outcomes.succeed(fresh, [good], {})
    heard: list[Event] = []
    bench.bus.hook(heard.append)
    late = await bench.outcomes.keep(stale, LATE)
    with pytest.raises(Conflict):
        await bench.outcomes.succeed(stale, [late], {})
    assert heard == []
    assert len(await outputs(bench, one)) == 1
    if not is_done:
        await bench.outcomes.succeed(fresh, [good], {})
    now = await bench.store.get(one.id)
    assert now.outputs == (good,)
    assert await bench.blobs.get(good.blob.key) == b"good"


async def test_a_picture_of_a_prediction_that_was_canceled_or_deleted_is_not_told(
    bench: Bench,
) -> None:
    one = prediction()
    await bench.store.add(one, event(one))
    running = await claim(bench)
    await bench.store.move(running, running.cancel(bench.clock()), finished(running))
    heard: list[Event] = []
    bench.bus.hook(heard.append)
    await bench.outcomes.keep(running, LATE)
    assert await outputs(bench, one) == []
    await bench.store.delete(one.id)
    await bench.outcomes.keep(running, LATE)
    assert heard == []
    with pytest.raises(NotFound):
        await bench.outcomes.succeed(running, [], {})
