"""The deliverer: nothing owed is forgotten, and nobody waits for a receiver that is down."""

import asyncio
import logging
from datetime import timedelta

import pytest
from standardwebhooks import Webhook

from fluxserve.core.deliveries import Delivery, DeliveryState
from fluxserve.core.errors import NotFound, Unavailable
from fluxserve.core.events import EventKind
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.storage.sqlite import SqliteDatabase
from fluxserve.webhooks import sender
from fluxserve.webhooks.sender import GIVE_UP_S, LEASE_S, QUICK_TRIES, RETRY_S
from fluxserve.webhooks.signing import Message
from fluxserve.webhooks.traffic import Lanes
from tests.webhooks.conftest import Post
from tests.webhooks.material import SECRET, receiving, until


async def test_a_message_is_sent_signed_and_settled(post: Post) -> None:
    async with receiving() as receiver:
        (owed,) = await post.owe(receiver.url("/hook?user=7&x=%20"))
        await post.deliverer.start()
        got = await receiver.next()
        assert got.path == "/hook?user=7&x=%20"
        assert got.headers["content-type"] == "application/json"
        assert got.headers["webhook-id"] == owed.id
        stamp = int(got.headers["webhook-timestamp"])
        assert stamp == int(post.clock.at.timestamp())
        expected = Webhook(SECRET).sign(owed.id, post.clock.at, got.body.decode())
        assert got.headers["webhook-signature"] == expected
        settled = await post.tried(owed, 1)
    assert (settled.state, settled.tries, settled.last_status) == (DeliveryState.SENT, 1, 200)


async def test_news_on_the_bus_is_sent_at_once(post: Post) -> None:
    async with receiving() as receiver:
        await post.deliverer.start()
        await until(lambda: not post.outbox.settled)
        (owed,) = await post.owe(receiver.url())
        prediction = await post.store.get(owed.prediction_id)
        post.bus.publish(post.event(prediction, EventKind.FINISHED))
        assert (await receiver.next()).headers["webhook-id"] == owed.id


async def test_a_failed_try_is_repeated_with_the_same_id_and_a_new_signature(post: Post) -> None:
    async with receiving(status=500) as receiver:
        (owed,) = await post.owe(receiver.url())
        await post.deliverer.start()
        first = await receiver.next()
        failed = await post.tried(owed, 1)
        assert (failed.state, failed.last_status) == (DeliveryState.PENDING, 500)
        assert failed.last_error == f"127.0.0.1:{receiver.port} answered 500"
        receiver.status = 200
        await post.pass_time(failed.next_at)
        second = await receiver.next()
        assert (await post.tried(owed, 2)).state is DeliveryState.SENT
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


async def test_tries_are_quick_at_first_then_hours_apart_and_end_after_a_day(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    delays: list[float] = []
    async with receiving(status=503) as receiver:
        (owed,) = await post.owe(receiver.url("/hook?token=secret"))
        await post.deliverer.start()
        with caplog.at_level(logging.INFO):
            for tries in range(1, 100):
                await receiver.next()
                row = await post.tried(owed, tries)
                if row.state is DeliveryState.DEAD:
                    break
                delays.append((row.next_at - post.clock.at).total_seconds())
                await post.pass_time(row.next_at)
    assert delays[:6] == [1, 2, 4, 8, 15, 30]
    assert delays == sorted(delays)
    assert delays[: len(RETRY_S)] == list(RETRY_S)
    assert GIVE_UP_S - RETRY_S[-1] < sum(delays) <= GIVE_UP_S
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert f"given up after {row.tries} tries" in warnings[0].getMessage()
    assert "token" not in caplog.text


async def test_a_day_old_message_that_is_sent_again_gets_the_quick_tries(post: Post) -> None:
    async with receiving(status=404) as receiver:
        (owed,) = await post.owe(receiver.url())
        post.clock.advance(2 * GIVE_UP_S)
        await post.deliverer.start()
        for tries in range(1, QUICK_TRIES + 1):
            await receiver.next()
            row = await post.tried(owed, tries)
            await post.pass_time(row.next_at)
        assert row.state is DeliveryState.DEAD
        receiver.status = 200
        await post.deliverer.redeliver(owed.id)
        assert (await receiver.next()).headers["webhook-id"] == owed.id
        await until(lambda: post.outbox.settled[owed.id].state is DeliveryState.SENT)
    with pytest.raises(NotFound):
        await post.deliverer.redeliver("f" * 32)


async def test_news_of_a_start_is_not_repeated_for_hours(post: Post) -> None:
    async with receiving(status=500) as receiver:
        (owed,) = await post.owe(receiver.url(), kind="start")
        await post.deliverer.start()
        for tries in range(1, QUICK_TRIES + 1):
            await receiver.next()
            row = await post.tried(owed, tries)
            await post.pass_time(row.next_at)
        assert row.state is DeliveryState.DEAD


@pytest.mark.parametrize("status", [301, 302, 307, 400, 410, 500])
async def test_anything_but_2xx_is_a_failure_and_no_redirect_is_followed(
    post: Post, status: int
) -> None:
    async with receiving(status=status) as receiver:
        receiver.more_headers = "location: /elsewhere\r\n"
        (owed,) = await post.owe(receiver.url())
        await post.deliverer.start()
        row = await post.tried(owed, 1)
        assert (row.state, row.last_status) == (DeliveryState.PENDING, status)
        assert receiver.inbox.qsize() == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_is_enough(post: Post, status: int) -> None:
    async with receiving(status=status) as receiver:
        (owed,) = await post.owe(receiver.url())
        await post.deliverer.start()
        assert (await post.tried(owed, 1)).state is DeliveryState.SENT


async def test_who_never_answers_is_a_failure(post: Post) -> None:
    async with receiving(status=0) as receiver:
        (owed,) = await post.owe(receiver.url())
        await post.deliverer.start()
        row = await post.tried(owed, 1)
    assert (row.state, row.last_status) == (DeliveryState.PENDING, 0)
    assert row.last_error == "127.0.0.1 did not answer within 0.5 s"


async def test_private_addresses_are_refused_like_any_failure(post: Post) -> None:
    (owed,) = await post.owe("http://169.254.169.254/latest")
    await post.deliverer.start()
    row = await post.tried(owed, 1)
    assert row.last_error.startswith("169.254.169.254 is not a public address")


async def test_a_receiver_that_hangs_stands_in_nobodys_way(database: SqliteDatabase) -> None:
    post = Post(database, 60.0, drain_s=0.0)
    async with receiving(status=0) as stuck, receiving("127.0.0.3") as quick:
        await post.owe(*[stuck.url() for _ in range(300)])
        post.clock.advance(0.001)  # the others come later
        owed = [row for _ in range(20) for row in await post.owe(quick.url())]
        await post.deliverer.start()
        ids = {(await quick.next()).headers["webhook-id"] for _ in owed}
        assert ids == {row.id for row in owed}
        # All the while the other one held every slot that it may have, and still does.
        assert stuck.open_now == stuck.open_max == Lanes().per_host
        await post.deliverer.stop()
    await post.guard.aclose()


async def test_a_receiver_in_trouble_is_asked_by_two_at_a_time(post: Post) -> None:
    async with receiving(status=0) as stuck:
        await post.owe(*[stuck.url() for _ in range(30)])
        await post.deliverer.start()
        await until(lambda: len(post.outbox.tries) >= Lanes().per_host)
        await until(lambda: stuck.open_now <= 2)
        stuck.open_max = 0
        for _ in range(3):
            post.clock.advance(30)
            post.deliverer.wake()
            await until(lambda: stuck.open_now > 0)
        assert stuck.open_max <= 2


async def test_no_more_than_the_limit_is_under_way(post: Post) -> None:
    receivers = [receiving(f"127.0.0.{n}", 0) for n in range(10, 15)]
    async with receivers[0] as a, receivers[1] as b, receivers[2] as c, receivers[3] as d:
        for receiver in (a, b, c, d):
            await post.owe(*[receiver.url() for _ in range(12)])
        await post.deliverer.start()
        await until(lambda: sum(r.open_now for r in (a, b, c, d)) == Lanes().at_once)
        assert all(r.open_now > 0 for r in (a, b, c, d))


async def test_a_burst_to_one_good_receiver_arrives_whole_and_once(
    database: SqliteDatabase,
) -> None:
    post = Post(database, 60.0)
    async with receiving() as receiver:
        owed = [row for _ in range(6) for row in await post.owe(*[receiver.url()] * 50)]
        await post.deliverer.start()
        async with post.passing_time():
            seen = [(await receiver.next()).headers["webhook-id"] for _ in owed]
        assert sorted(seen) == sorted(row.id for row in owed)
        await until(lambda: all(post._tries(row) for row in owed))
        assert receiver.inbox.empty()
        await post.deliverer.stop()
    await post.guard.aclose()


async def test_what_was_under_way_when_the_server_died_is_sent_after_the_lease(
    post: Post,
) -> None:
    async with receiving() as receiver:
        (owed,) = await post.owe(receiver.url())
        until_at = post.clock.at + timedelta(seconds=60)
        assert len(await post.outbox.claim_due(post.clock.at, until_at, 10)) == 1
        await post.deliverer.start()
        await post.pass_time(until_at)
        assert (await receiver.next()).headers["webhook-id"] == owed.id


async def test_a_message_whose_turn_comes_after_its_lease_is_left_to_who_claims_it_next(
    post: Post,
) -> None:
    at_once = Lanes().at_once
    async with (
        receiving("127.0.0.1", status=0) as one,
        receiving("127.0.0.2", status=0) as two,
        receiving("127.0.0.3") as three,
    ):
        await post.owe(*[one.url()] * (at_once // 2), *[two.url()] * (at_once // 2))
        await post.deliverer.start()
        await until(lambda: one.open_now + two.open_now == at_once)
        (owed,) = await post.owe(three.url())
        post.deliverer.wake()
        await until(lambda: post.deliverer._traffic.held == at_once + 1)  # it stands in line
        post.clock.advance(LEASE_S)
        after = post.clock.at + timedelta(seconds=LEASE_S)
        claimed = await post.outbox.claim_due(post.clock.at, after, 100)  # by another server
        assert owed.id in {row.id for row in claimed}
        await until(lambda: post.deliverer._traffic.held == 0)
        assert three.inbox.empty()
        assert (await post.outbox.get(owed.id)).next_at == after  # the other's claim stands


async def test_a_stop_leaves_what_is_unsent_for_the_next_start(
    post: Post, database: SqliteDatabase
) -> None:
    async with receiving(status=0) as receiver:
        owed = await post.owe(*[receiver.url() for _ in range(20)])
        await post.deliverer.start()
        await until(lambda: receiver.open_now == Lanes().per_host)
        await post.deliverer.stop()
        rows = [await post.outbox.get(row.id) for row in owed]
        assert all(row.state is DeliveryState.PENDING for row in rows)
        assert {row.tries for row in rows} == {0, 1}
        receiver.status = 200
        after = Post(database, 5.0)
        after.clock.at = post.clock.at + timedelta(seconds=2)
        while not receiver.inbox.empty():
            receiver.inbox.get_nowait()
        await after.deliverer.start()
        seen = {(await receiver.next()).headers["webhook-id"] for _ in owed}
        assert seen == {row.id for row in owed}
        await after.deliverer.stop()
        await after.guard.aclose()


async def test_a_stop_waits_for_tries_under_way(post: Post) -> None:
    async with receiving() as receiver:
        (owed,) = await post.owe(receiver.url())
        await post.deliverer.start()
        await receiver.next()
        await post.deliverer.stop()
        assert (await post.outbox.get(owed.id)).state is DeliveryState.SENT


async def test_a_stop_ends_though_the_database_is_away(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(held: Delivery, after: Delivery) -> bool:
        raise Unavailable("the database does not answer")

    async with receiving() as receiver:
        await post.owe(*[receiver.url()] * 20)  # more than go to one host at once
        await post.deliverer.start()
        await receiver.next()
        monkeypatch.setattr(post.deliverer._store, "settle", away)
        await post.deliverer.stop()
        assert not post.deliverer._tasks


async def test_a_message_of_a_forgotten_prediction_is_given_up(post: Post) -> None:
    (owed,) = await post.owe("http://127.0.0.1:9/hook")
    post.deliverer._predictions = forgotten
    await post.deliverer.start()
    row = await post.tried(owed, 1)
    assert (row.state, row.last_error) == (DeliveryState.DEAD, "the prediction is gone")


async def forgotten(prediction_id: str) -> Prediction:
    raise NotFound("no such prediction")


async def test_a_message_that_cannot_be_written_is_logged_and_tried_again(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    (owed,) = await post.owe("http://127.0.0.1:9/hook")

    def broken(prediction: Prediction, delivery: Delivery) -> Message:
        raise KeyError("output")

    post.courier._render = broken
    await post.deliverer.start()
    row = await post.tried(owed, 1)
    assert (row.state, row.last_error) == (
        DeliveryState.PENDING,
        "the message cannot be written",
    )
    assert "cannot be written" in caplog.text


async def test_a_store_that_fails_for_a_moment_stops_nothing(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    claim = post.outbox.claim_due
    failures = [OSError("disk"), OSError("disk")]

    async def shaky(*args: object) -> object:
        if failures:
            raise failures.pop()
        return await claim(*args)  # type: ignore[arg-type]

    post.outbox.claim_due = shaky  # type: ignore[assignment,method-assign]
    async with receiving() as receiver:
        await post.owe(receiver.url())
        await post.deliverer.start()
        while failures:
            post.deliverer.wake()
            await asyncio.sleep(0)
        post.deliverer.wake()
        await receiver.next()
    assert "looking for due webhooks failed" in caplog.text


async def test_the_body_is_the_prediction_as_it_is_at_the_time_of_the_try(post: Post) -> None:
    async with receiving(status=500) as receiver:
        (owed,) = await post.owe(receiver.url())
        await post.deliverer.start()
        assert b'"status":"queued"' in (await receiver.next()).body
        row = await post.tried(owed, 1)
        before = await post.store.get(owed.prediction_id)
        after = before.cancel(post.clock.at)
        await post.store.move(before, after, post.event(before, EventKind.FINISHED))
        assert after.status is PredictionStatus.CANCELED
        await post.pass_time(row.next_at)
        assert b'"status":"canceled"' in (await receiver.next()).body


async def test_a_result_that_cannot_be_kept_is_tried_again_after_the_lease(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    settle = post.outbox.settle
    failures = [OSError("disk")]

    async def shaky(held: Delivery, after: Delivery) -> bool:
        if failures:
            raise failures.pop()
        return await settle(held, after)

    post.outbox.settle = shaky  # type: ignore[method-assign]
    async with receiving() as receiver:
        (owed,) = await post.owe(receiver.url())
        await post.deliverer.start()
        first = await receiver.next()
        await until(lambda: not post.deliverer._tasks)
        assert "could not be kept" in caplog.text
        await post.pass_time(post.clock.at + timedelta(seconds=LEASE_S))
        assert (await receiver.next()).headers["webhook-id"] == first.headers["webhook-id"]
        assert (await post.tried(owed, 1)).state is DeliveryState.SENT


async def test_more_than_may_be_held_is_claimed_bit_by_bit(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "CLAIM_MAX", 2)
    async with receiving() as receiver:
        owed = await post.owe(*[receiver.url() for _ in range(9)])
        await post.deliverer.start()
        seen = {(await receiver.next()).headers["webhook-id"] for _ in owed}
        assert seen == {row.id for row in owed}


async def test_the_log_says_why_a_message_was_put_off(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        (owed,) = await post.owe("http://10.0.0.1/hook")
        await post.deliverer.start()
        await post.tried(owed, 1)
    assert "to 10.0.0.1: 10.0.0.1 is not a public address" in caplog.text
