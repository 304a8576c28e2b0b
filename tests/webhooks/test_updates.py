"""News of running predictions: newest state, never too often, never after the end."""

import asyncio
import logging

import pytest

from fluxserve.core.events import Event, EventKind
from fluxserve.core.prediction import OutputImage, Prediction
from fluxserve.core.request import JSON, BlobRef, WebhookSpec
from fluxserve.webhooks import updates
from tests.webhooks.conftest import Post
from tests.webhooks.material import Receiver, a_prediction, receiving, until


async def running(post: Post, receiver: Receiver, *events: str) -> Prediction:
    """A stored prediction whose webhook asked for `events`."""
    prediction = a_prediction(WebhookSpec(url=receiver.url(), events=events))
    return await post.store.add(prediction, post.event(prediction, EventKind.QUEUED))


def output(post: Post, prediction: Prediction, index: int = 0) -> Event:
    data: dict[str, JSON] = {
        "index": index,
        "attempt": 1,
        "key": f"out-{index}",
        "mime": "image/png",
        "seed": 7,
    }
    return Event(prediction_id=prediction.id, kind=EventKind.OUTPUT, at=post.clock.at, data=data)


async def finish(post: Post, prediction: Prediction) -> None:
    blob = BlobRef(key="out-0", mime="image/png", size_bytes=9)
    claimed = await post.store.claim(
        "fake", owner="me", at=post.clock.at, lease_until=post.clock.at
    )
    assert claimed is not None
    before = claimed[0]
    after = before.succeed((OutputImage(blob=blob, seed=7),), post.clock.at, {})
    event = await post.store.move(before, after, post.event(prediction, EventKind.FINISHED))
    post.bus.publish(event)


async def idle(post: Post) -> None:
    await until(lambda: not post.updates._tasks)


async def test_an_output_is_told_with_what_is_known_of_it(post: Post) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "output", "completed")
        post.bus.publish(output(post, prediction, 1))
        post.bus.publish(output(post, prediction, 0))
        got = await receiver.next()
        assert b'"output":["out-0","out-1"]' in got.body
        assert got.headers["webhook-signature"].startswith("v1,")
        await finish(post, prediction)
        await idle(post)
        assert receiver.inbox.empty()  # the end is told by a row of the outbox


async def test_many_logs_become_few_messages_and_each_has_its_own_id(post: Post) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "logs", "completed")
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < 0.22:
            post.bus.publish(post.event(prediction, EventKind.LOG))
            await asyncio.sleep(0.002)
        await finish(post, prediction)
        await idle(post)
    ids = [receiver.inbox.get_nowait().headers["webhook-id"] for _ in range(receiver.inbox.qsize())]
    assert 2 <= len(ids) <= 5  # one each 50 ms
    assert len(set(ids)) == len(ids)


async def test_without_a_completed_message_the_last_state_is_still_told(post: Post) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "output")
        post.bus.publish(output(post, prediction))
        await finish(post, prediction)
        await idle(post)
        bodies = [receiver.inbox.get_nowait().body for _ in range(receiver.inbox.qsize())]
    assert len(bodies) == 1  # one output at the end: a single request
    assert b'"output":["out-0"]' in bodies[0]


@pytest.mark.parametrize("events", [("completed",), ("start",), ("start", "completed")])
async def test_who_did_not_ask_for_news_gets_none(post: Post, events: tuple[str, ...]) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, *events)
        for _ in range(3):
            post.bus.publish(output(post, prediction))
            post.bus.publish(post.event(prediction, EventKind.LOG))
            await idle(post)
        await finish(post, prediction)
        assert receiver.inbox.empty()
        assert not post.updates._stories


async def test_logs_alone_do_not_tell_who_wants_outputs(post: Post) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "output", "completed")
        post.bus.publish(post.event(prediction, EventKind.LOG))
        post.bus.publish(output(post, prediction))
        await receiver.next()
        await finish(post, prediction)
        await idle(post)
        assert receiver.inbox.empty()


async def test_a_failed_message_is_dropped_not_repeated(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(status=500) as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "output", "completed")
        with caplog.at_level(logging.INFO):
            post.bus.publish(output(post, prediction))
            await receiver.next()
            await finish(post, prediction)
            await idle(post)
        assert receiver.inbox.empty()
    assert "dropped" in caplog.text


async def test_a_slow_receiver_delays_only_its_own_prediction(post: Post) -> None:
    async with receiving(status=0) as slow, receiving("127.0.0.3") as quick:
        await post.updates.start()
        first = await running(post, slow, "output")
        second = await running(post, quick, "output")
        post.bus.publish(output(post, first))
        post.bus.publish(output(post, second))
        await quick.next()


async def test_outputs_of_a_lost_attempt_are_forgotten(post: Post) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "output", "completed")
        post.bus.publish(output(post, prediction, 0))
        post.bus.publish(output(post, prediction, 1))
        await receiver.next()
        post.bus.publish(post.event(prediction, EventKind.REQUEUED))
        post.bus.publish(output(post, prediction, 0))
        assert b'"output":["out-0"]' in (await receiver.next()).body


async def test_an_unknown_prediction_ends_the_story(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    await post.updates.start()
    post.bus.publish(output(post, a_prediction()))
    await idle(post)
    assert not post.updates._stories
    assert "could not be told" not in caplog.text


async def test_a_log_after_the_end_starts_nothing_that_lasts(post: Post) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "logs", "completed")
        await finish(post, prediction)
        post.bus.publish(post.event(prediction, EventKind.LOG))
        await idle(post)
        assert not post.updates._stories
        assert receiver.inbox.empty()


async def test_no_more_predictions_are_followed_than_there_is_room(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "AT_ONCE", 1)
    async with receiving() as receiver:
        await post.updates.start()
        first = await running(post, receiver, "output", "completed")
        second = await running(post, receiver, "output", "completed")
        post.bus.publish(output(post, first))
        post.bus.publish(output(post, second))
        assert first.id.encode() in (await receiver.next()).body
        assert list(post.updates._stories) == [first.id]


async def test_other_events_are_no_news(post: Post) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "output", "completed")
        post.bus.publish(output(post, prediction))
        await receiver.next()
        for kind in (EventKind.PROGRESS, EventKind.PREVIEW, EventKind.CANCEL_REQUESTED):
            post.bus.publish(post.event(prediction, kind))
        await finish(post, prediction)
        await idle(post)
        assert receiver.inbox.empty()


async def test_trouble_with_one_story_ends_only_that_one(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(prediction_id: str) -> Prediction:
        raise OSError("disk")

    read = post.updates._predictions
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "output")
        post.updates._predictions = broken
        post.bus.publish(output(post, prediction))
        await idle(post)
        assert "could not be told" in caplog.text
        post.updates._predictions = read
        post.bus.publish(output(post, prediction))
        await receiver.next()


async def test_after_a_stop_nothing_is_told(post: Post) -> None:
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "output")
        await post.updates.stop()
        post.bus.publish(output(post, prediction))
        assert not post.updates._tasks


async def test_one_that_ended_at_another_server_is_followed_no_longer(post: Post) -> None:
    post.updates._recheck_s = 0.05
    async with receiving() as receiver:
        await post.updates.start()
        prediction = await running(post, receiver, "logs", "completed")
        post.bus.publish(post.event(prediction, EventKind.LOG))
        await receiver.next()
        after = prediction.cancel(post.clock.at)
        await post.store.move(prediction, after, post.event(prediction, EventKind.FINISHED))
        await idle(post)  # though no bus of this process told of the end
        assert not post.updates._stories


async def test_those_that_want_no_news_and_ended_elsewhere_are_not_kept_for_ever(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "UNWANTED_MAX", 2)
    async with receiving() as receiver:
        await post.updates.start()
        for _ in range(3):
            prediction = await running(post, receiver, "completed")
            post.bus.publish(post.event(prediction, EventKind.LOG))
            await idle(post)
        assert len(post.updates._stories) == 1
