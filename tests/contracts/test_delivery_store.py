"""What every outbox promises."""

import asyncio
from dataclasses import replace

import pytest

from fluxserve.core.deliveries import Delivery, DeliveryState
from fluxserve.core.errors import NotFound
from fluxserve.core.ids import new_id
from fluxserve.core.ports import DeliveryStore, PredictionStore
from tests.contracts.material import NOW, after, delivery, event, prediction


async def plan(store: PredictionStore, *next_at_s: float) -> list[Delivery]:
    """One prediction with a message due at each of these seconds after NOW."""
    one = prediction()
    messages = [
        delivery(one, created_at=after(n), next_at=after(s)) for n, s in enumerate(next_at_s)
    ]
    await store.add(one, event(one), messages)
    return messages


async def test_only_what_is_due_is_claimed_and_only_once(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    first, second, _ = await plan(store, 0, 5, 20)
    assert await deliveries.next_due() == NOW
    claimed = await deliveries.claim_due(after(10), after(40), limit=10)
    assert claimed == [replace(one, next_at=after(40)) for one in (first, second)]
    assert await deliveries.claim_due(after(10), after(40), limit=10) == []
    assert await deliveries.next_due() == after(20)


async def test_a_claim_takes_the_longest_due_first(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    messages = await plan(store, 3, 1, 2)
    claimed = await deliveries.claim_due(after(10), after(40), limit=2)
    assert [one.id for one in claimed] == [messages[1].id, messages[2].id]


async def test_two_deliverers_never_get_the_same_message(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    messages = await plan(store, *range(9))
    batches = await asyncio.gather(
        *(deliveries.claim_due(after(10), after(40), limit=2) for _ in range(6))
    )
    ids = [one.id for batch in batches for one in batch]
    assert sorted(ids) == sorted(one.id for one in messages)


async def test_a_claim_that_was_never_settled_comes_again(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    (message,) = await plan(store, 0)
    await deliveries.claim_due(after(1), after(30), limit=1)
    (again,) = await deliveries.claim_due(after(30), after(60), limit=1)
    assert again.id == message.id


async def test_a_message_that_was_put_off_waits(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    (message,) = await plan(store, 0)
    (claimed,) = await deliveries.claim_due(after(1), after(30), limit=1)
    put_off = replace(
        claimed, tries=1, next_at=after(99), last_status=503, last_error="busy \x00\ud83d"
    )
    assert await deliveries.settle(claimed, put_off)
    assert await deliveries.get(message.id) == put_off
    assert await deliveries.claim_due(after(98), after(200), limit=1) == []
    assert await deliveries.next_due() == after(99)


@pytest.mark.parametrize("state", [DeliveryState.SENT, DeliveryState.DEAD])
async def test_what_is_settled_is_claimed_no_more_until_it_is_revived(
    store: PredictionStore, deliveries: DeliveryStore, state: DeliveryState
) -> None:
    (message,) = await plan(store, 0)
    ended = replace(message, state=state)
    assert await deliveries.settle(message, ended)
    assert await deliveries.claim_due(after(9), after(30), limit=1) == []
    assert await deliveries.next_due() is None
    assert await deliveries.settle(ended, message)
    assert len(await deliveries.claim_due(after(9), after(30), limit=1)) == 1


async def test_a_result_that_comes_after_the_lease_changes_nothing(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    (message,) = await plan(store, 0)
    (slow,) = await deliveries.claim_due(after(1), after(30), limit=1)
    (quick,) = await deliveries.claim_due(after(30), after(60), limit=1)
    failed = replace(slow, tries=1, next_at=after(31), last_status=503)
    assert not await deliveries.settle(slow, failed)
    sent = replace(quick, tries=1, state=DeliveryState.SENT, last_status=200)
    assert await deliveries.settle(quick, sent)
    assert not await deliveries.settle(slow, failed)
    assert await deliveries.get(message.id) == sent


async def test_settling_what_is_gone_is_no_error(deliveries: DeliveryStore) -> None:
    gone = delivery(prediction())
    assert not await deliveries.settle(gone, gone)
    with pytest.raises(NotFound):
        await deliveries.get(new_id())


async def test_lists_are_newest_first_and_can_be_narrowed(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    old, new = await plan(store, 0, 0)
    (other,) = await plan(store, 0)
    await deliveries.settle(new, replace(new, state=DeliveryState.DEAD))
    of_one = await deliveries.page(prediction_id=old.prediction_id)
    assert [one.id for one in of_one] == [new.id, old.id]
    assert [one.id for one in await deliveries.page(state=DeliveryState.DEAD)] == [new.id]
    pending = await deliveries.page(state=DeliveryState.PENDING, prediction_id=other.prediction_id)
    assert pending == [other]
    assert len(await deliveries.page(limit=2)) == 2
