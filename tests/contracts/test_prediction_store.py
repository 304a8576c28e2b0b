"""What every prediction store promises about acceptance, work and endings."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from fluxserve.core.errors import (
    Conflict,
    ErrorCode,
    Failure,
    NotFound,
    Problem,
    QueueFull,
    RateLimited,
    Rule,
)
from fluxserve.core.events import EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.ports import DeliveryStore, Idempotency, PredictionStore
from fluxserve.core.prediction import Prediction, PredictionStatus
from tests.contracts.material import (
    NOW,
    WEBHOOK,
    after,
    blob,
    delivery,
    event,
    finished,
    output,
    prediction,
    request,
)

SAME = Idempotency(key="order-1", body_hash="aa")


async def add(store: PredictionStore, one: Prediction | None = None, **more: object) -> Prediction:
    one = one or prediction()
    return await store.add(one, event(one), **more)  # type: ignore[arg-type]


async def start(store: PredictionStore, owner: str = "w1", until_s: float = 30) -> Prediction:
    claimed = await store.claim("local", owner=owner, at=NOW, lease_until=after(until_s))
    assert claimed is not None
    return claimed[0]


# --- acceptance ----------------------------------------------------------------------------------


async def test_what_was_added_comes_back_the_same(store: PredictionStore) -> None:
    one = prediction(
        blob("inputs/a", sha256="ab", width=8, height=9),
        priority=3,
        deadline_at=after(60),
        key_id="mine",
        webhook=WEBHOOK,
    )
    assert await add(store, one) == one
    assert await store.get(one.id) == one


async def test_an_unknown_id_is_not_found(store: PredictionStore) -> None:
    with pytest.raises(NotFound):
        await store.get(new_id())


async def test_the_first_event_is_number_one(store: PredictionStore) -> None:
    one = await add(store)
    (first,) = await store.events(one.id)
    assert (first.seq, first.kind, first.at, first.data) == (1, EventKind.QUEUED, NOW, {"n": 1})


async def test_messages_are_stored_with_the_prediction(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    one = prediction()
    message = delivery(one)
    await store.add(one, event(one), (message,))
    assert await deliveries.get(message.id) == message


async def test_the_same_name_and_body_give_the_same_prediction(store: PredictionStore) -> None:
    one = await add(store, prediction(key_id="mine"), idempotency=SAME)
    again = await add(store, prediction(key_id="mine"), idempotency=SAME)
    assert again == one
    assert [event_.seq for event_ in await store.events(one.id)] == [1]


async def test_the_same_name_at_the_same_moment_gives_one_prediction(
    store: PredictionStore,
) -> None:
    both = await asyncio.gather(*(add(store, prediction(), idempotency=SAME) for _ in range(5)))
    assert len({one.id for one in both}) == 1


async def test_the_same_name_with_another_body_conflicts(store: PredictionStore) -> None:
    await add(store, prediction(key_id="mine"), idempotency=SAME)
    other = Idempotency(key="order-1", body_hash="bb")
    with pytest.raises(Conflict):
        await add(store, prediction(key_id="mine"), idempotency=other)


async def test_a_name_belongs_to_its_key(store: PredictionStore) -> None:
    mine = await add(store, prediction(key_id="mine"), idempotency=SAME)
    yours = await add(store, prediction(key_id="yours"), idempotency=SAME)
    assert mine.id != yours.id


async def test_a_full_queue_refuses_and_a_claim_makes_room(store: PredictionStore) -> None:
    for _ in range(2):
        await add(store, queue_max=2)
    with pytest.raises(QueueFull):
        await add(store, queue_max=2)
    await start(store)
    await add(store, queue_max=2)
    with pytest.raises(QueueFull):
        await add(store, queue_max=2)


async def test_requeued_work_counts_against_the_queue(store: PredictionStore) -> None:
    await add(store, queue_max=2)
    running = await start(store)
    await add(store, queue_max=2)
    await store.move(running, running.requeue(), event(running, EventKind.REQUEUED))
    with pytest.raises(QueueFull):
        await add(store, queue_max=2)


async def test_a_smaller_queue_is_obeyed_at_once(store: PredictionStore) -> None:
    for _ in range(3):
        await add(store, queue_max=100)
    with pytest.raises(QueueFull):
        await add(store, queue_max=3)


async def test_an_earlier_prediction_is_returned_even_when_the_queue_is_full(
    store: PredictionStore,
) -> None:
    one = await add(store, idempotency=SAME, queue_max=1)
    assert await add(store, idempotency=SAME, queue_max=1) == one


async def test_a_key_may_have_only_so_many_unfinished(store: PredictionStore) -> None:
    for _ in range(2):
        await add(store, prediction(key_id="mine"), concurrency_max=2)
    with pytest.raises(RateLimited):
        await add(store, prediction(key_id="mine"), concurrency_max=2)
    await add(store, prediction(key_id="yours", created_at=after(1)), concurrency_max=2)
    running = await start(store)
    with pytest.raises(RateLimited):
        await add(store, prediction(key_id="mine"), concurrency_max=2)
    await store.move(running, running.cancel(NOW), finished(running))
    await add(store, prediction(key_id="mine"), concurrency_max=2)


# --- claims and leases ---------------------------------------------------------------------------


async def test_priority_goes_first_then_age(store: PredictionStore) -> None:
    young = await add(store, prediction(created_at=after(2)))
    old = await add(store, prediction(created_at=after(1)))
    urgent = await add(store, prediction(created_at=after(3), priority=1))
    assert [(await start(store)).id for _ in range(3)] == [urgent.id, old.id, young.id]


async def test_a_claim_takes_only_its_engines_work(store: PredictionStore) -> None:
    await add(store, prediction(engine="upstream"))
    assert await store.claim("local", owner="w", at=NOW, lease_until=after(9)) is None
    assert await store.claim("upstream", owner="w", at=NOW, lease_until=after(9)) is not None


async def test_a_claim_starts_the_prediction_and_tells_so(store: PredictionStore) -> None:
    one = await add(store)
    claimed = await store.claim("local", owner="w", at=after(1), lease_until=after(9))
    assert claimed is not None
    running, started = claimed
    assert running == one.start(after(1))
    assert await store.get(one.id) == running
    assert (started.seq, started.kind, started.data) == (2, EventKind.STARTED, {"attempt": 1})
    assert (await store.events(one.id, after=1)) == [started]


async def test_a_claim_plans_the_start_message(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    one = await add(store, prediction(webhook=WEBHOOK))
    await start(store)
    (message,) = await deliveries.page(prediction_id=one.id)
    assert (message.kind, message.url, message.next_at) == ("start", WEBHOOK.url, NOW)


async def test_two_claimers_never_get_the_same_prediction(store: PredictionStore) -> None:
    for _ in range(10):
        await add(store)
    claims = await asyncio.gather(
        *(store.claim("local", owner=f"w{n}", at=NOW, lease_until=after(9)) for n in range(12))
    )
    ids = [claim[0].id for claim in claims if claim]
    assert len(ids) == len(set(ids)) == 10


async def test_renewing_saves_logs_and_progress(store: PredictionStore) -> None:
    await add(store)
    running = replace(await start(store), logs="step 1\n\x00\ud800", progress=0.25)
    lease = await store.renew(running, owner="w1", lease_until=after(60))
    assert not lease.cancel_requested
    assert await store.get(running.id) == running


async def test_a_renewed_lease_does_not_expire_at_its_old_end(store: PredictionStore) -> None:
    await add(store)
    running = await start(store, until_s=30)
    assert await store.expired(after(30)) == []
    assert await store.expired(after(31)) == [running]
    await store.renew(running, owner="w1", lease_until=after(60))
    assert await store.expired(after(31)) == []


async def test_a_lost_worker_is_followed_by_another_attempt(store: PredictionStore) -> None:
    await add(store)
    first = await start(store, owner="w1")
    await store.move(first, first.requeue(), event(first, EventKind.REQUEUED))
    assert await store.expired(after(1000)) == []
    second = await start(store, owner="w2")
    assert second.attempt == 2
    with pytest.raises(Conflict):
        await store.renew(first, owner="w1", lease_until=after(60))
    late = first.succeed((output("late"),), NOW, {})
    with pytest.raises(Conflict):
        await store.move(first, late, finished(first))
    assert await store.get(first.id) == second


async def test_another_owner_cannot_renew(store: PredictionStore) -> None:
    await add(store)
    running = await start(store, owner="w1")
    with pytest.raises(Conflict):
        await store.renew(running, owner="w2", lease_until=after(60))


async def test_a_worker_hears_of_a_cancel_when_it_renews(store: PredictionStore) -> None:
    await add(store)
    running = await start(store)
    flagged = await store.ask_cancel(running.id)
    assert flagged == replace(running, cancel_requested=True)
    assert (await store.renew(running, owner="w1", lease_until=after(60))).cancel_requested


async def test_the_cancel_flag_survives_a_move_that_did_not_know_of_it(
    store: PredictionStore,
) -> None:
    await add(store)
    running = await start(store)
    await store.ask_cancel(running.id)
    await store.move(running, running.requeue(), event(running, EventKind.REQUEUED))
    assert (await start(store)).cancel_requested


async def test_only_running_predictions_take_the_flag(store: PredictionStore) -> None:
    one = await add(store)
    assert await store.ask_cancel(one.id) == one
    with pytest.raises(NotFound):
        await store.ask_cancel(new_id())


# --- endings -------------------------------------------------------------------------------------


async def test_a_move_saves_everything_it_says(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    await add(store)
    running = await start(store)
    sized = replace(running, request=request(width=96), served_by="tiny", logs="done\n")
    done = sized.succeed((output("a"), output("b")), after(5), {"predict_s": 4.5})
    message = delivery(done)
    told = await store.move(running, done, finished(done), (message,))
    assert told == replace(finished(done), seq=3)
    assert await store.get(done.id) == done
    assert (await store.events(done.id))[-1] == told
    assert await deliveries.get(message.id) == message


async def test_a_failure_comes_back_with_its_problems(store: PredictionStore) -> None:
    await add(store)
    running = await start(store)
    problem = Problem(field="a.b", rule=Rule.CHOICE, message="no", choices=("x", "y"), limit=2.5)
    failure = Failure(
        code=ErrorCode.INPUT_REFUSED,
        message="no \ud83d",
        field="prompt",
        problems=(problem,),
        retry_after_s=1.5,
    )
    failed = running.fail(failure, after(1))
    await store.move(running, failed, finished(failed))
    assert await store.get(failed.id) == failed


async def test_a_prediction_ends_once(store: PredictionStore) -> None:
    one = await add(store)
    canceled = one.cancel(NOW)
    endings = await asyncio.gather(
        *(store.move(one, canceled, finished(one)) for _ in range(3)), return_exceptions=True
    )
    assert sum(isinstance(ending, Conflict) for ending in endings) == 2
    assert len(await store.events(one.id)) == 2


async def test_moving_what_is_gone_is_not_found(store: PredictionStore) -> None:
    one = prediction()
    with pytest.raises(NotFound):
        await store.move(one, one.cancel(NOW), finished(one))
    with pytest.raises(NotFound):
        await store.append(event(one, EventKind.OUTPUT), attempt=1)


async def test_events_are_numbered_without_gaps(store: PredictionStore) -> None:
    await add(store)
    one = await start(store)
    told = await asyncio.gather(
        *(store.append(event(one, EventKind.OUTPUT), attempt=1) for _ in range(5))
    )
    assert sorted(event_.seq for event_ in told) == [3, 4, 5, 6, 7]
    assert [event_.seq for event_ in await store.events(one.id, after=5)] == [6, 7]


async def test_only_the_start_that_runs_is_heard(store: PredictionStore) -> None:
    await add(store)
    first = await start(store)
    await store.move(first, first.requeue(), event(first, EventKind.REQUEUED))
    with pytest.raises(Conflict):
        await store.append(event(first, EventKind.OUTPUT), attempt=1)
    second = await start(store)
    with pytest.raises(Conflict):
        await store.append(event(first, EventKind.OUTPUT), attempt=1)
    told = await store.append(event(second, EventKind.OUTPUT), attempt=2)
    await store.move(second, second.cancel(NOW), finished(second))
    with pytest.raises(Conflict):
        await store.append(event(second, EventKind.OUTPUT), attempt=2)
    outputs = [e for e in await store.events(first.id) if e.kind is EventKind.OUTPUT]
    assert outputs == [told]


async def test_deadlines_are_found_while_unfinished(store: PredictionStore) -> None:
    queued = await add(store, prediction(deadline_at=after(10), created_at=after(1)))
    await add(store, prediction(deadline_at=after(20)))
    await add(store, prediction(created_at=after(2)))
    running = await start(store)
    assert await store.overdue(after(9)) == []
    assert await store.overdue(after(10)) == [queued]
    assert {one.id for one in await store.overdue(after(20))} == {queued.id, running.id}
    expired = queued.expire(after(11))
    await store.move(queued, expired, finished(queued))
    assert [one.status for one in await store.overdue(after(20))] == [PredictionStatus.RUNNING]


async def test_the_place_in_the_queue_counts_those_before(store: PredictionStore) -> None:
    second = await add(store, prediction(created_at=after(2)))
    first = await add(store, prediction(created_at=after(1)))
    third = await add(store, prediction(created_at=after(0), priority=-1))
    await add(store, prediction(engine="upstream", created_at=NOW - timedelta(hours=1)))
    places = [await store.queue_position(one) for one in (first, second, third)]
    assert places == [0, 1, 2]
    assert await store.queue_position(await start(store)) == 0
