"""Money of predictions that are gone: what a provider charges for them still reaches the books."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import BudgetExhausted, ErrorCode, Failure
from fluxserve.core.prediction import Prediction
from tests.storage.test_ledger import NOW, Books, K

TOMORROW = NOW + timedelta(days=1)


async def canceled(books: Books, cost_micro: int = 0) -> tuple[Prediction, Attempt]:
    """The prediction that is next, canceled while its provider works on it."""
    running = await books.start()
    attempt = await books.submitted(running, cost_micro)
    await books.end(running, running.cancel(NOW))
    return running, attempt


async def test_a_provider_that_charges_for_a_deleted_prediction_is_in_the_books(
    books: Books,
) -> None:
    await books.price()
    key = await books.key(budget_micro=50_000)
    await books.accept(key)
    prediction, attempt = await canceled(books)
    await books.predictions.delete(prediction.id)
    assert await books.month(key) == (40_000, 0)
    await books.closed(attempt, AttemptState.DONE, cost_micro=30_000)
    assert await books.written(prediction) == [(K.HOLD, 40_000), (K.SETTLE, 30_000)]
    assert await books.month(key) == (0, 30_000)
    rows = await books.money.usage(key_id=key.id, start=NOW, end=TOMORROW)
    assert [(row.channel, row.micro) for row in rows] == [("channel", 30_000)]


async def test_a_deleted_prediction_whose_provider_names_no_sum_costs_what_was_held(
    books: Books,
) -> None:
    await books.price()
    key = await books.key()
    await books.accept(key, pictures=2)
    prediction, attempt = await canceled(books)
    await books.predictions.delete(prediction.id)
    await books.closed(attempt, AttemptState.DONE)
    assert (await books.written(prediction))[1] == (K.SETTLE, 80_000)
    assert await books.month(key) == (0, 80_000)


async def test_of_a_deleted_prediction_only_the_parts_that_were_made_are_paid_for(
    books: Books,
) -> None:
    await books.price()
    key = await books.key()
    await books.accept(key, pictures=2)
    running = await books.start()
    parts = []
    for part in range(2):
        intent = Attempt(
            id=f"{part:032}",
            prediction_id=running.id,
            fence=running.attempt,
            channel="channel",
            model="theirs",
            part=part,
            parts=2,
            created_at=NOW,
            next_at=NOW,
        )
        await books.attempts.intend(intent, TOMORROW)
        accepted = replace(intent, state=AttemptState.ACCEPTED, upstream_id=f"job {part}")
        parts.append(await books.attempts.move(intent, accepted))
    await books.end(running, running.cancel(NOW))
    await books.predictions.delete(running.id)
    await books.closed(parts[0], AttemptState.DONE)
    assert await books.month(key) == (80_000, 0)
    await books.closed(parts[1], AttemptState.CANCELED)
    assert await books.month(key) == (0, 40_000)


async def test_a_deleted_prediction_that_its_provider_never_made_frees_its_hold(
    books: Books,
) -> None:
    await books.price()
    key = await books.key(budget_micro=50_000)
    await books.accept(key)
    prediction, attempt = await canceled(books)
    await books.predictions.delete(prediction.id)
    with pytest.raises(BudgetExhausted):
        await books.accept(key)
    await books.closed(attempt, AttemptState.CANCELED)
    assert (await books.written(prediction))[1] == (K.RELEASE, 0)
    await books.accept(key)


async def test_the_bill_for_a_deleted_prediction_without_a_price_finds_its_key(
    books: Books,
) -> None:
    key = await books.key()
    await books.accept(key)
    prediction, attempt = await canceled(books)
    await books.predictions.delete(prediction.id)
    await books.closed(attempt, AttemptState.DONE, cost_micro=30_000)
    assert await books.month(key) == (0, 30_000)


async def test_a_late_bill_for_a_purged_prediction_is_in_the_books(books: Books) -> None:
    key = await books.key()
    await books.accept(key)
    running = await books.start()
    attempt = await books.submitted(running)
    failure = Failure(code=ErrorCode.UPSTREAM_UNKNOWN, message="who knows")
    await books.end(running, running.fail(failure, NOW))
    assert await books.predictions.purge(TOMORROW) == 1
    await books.closed(attempt, AttemptState.DONE, cost_micro=30_000)
    assert await books.month(key) == (0, 30_000)


async def test_deleting_what_no_provider_works_on_writes_nothing_in_the_books(
    books: Books,
) -> None:
    key = await books.key()
    await books.accept(key)
    running = await books.start()
    attempt = await books.submitted(running)
    await books.closed(attempt, AttemptState.FAILED)
    await books.end(running, running.cancel(NOW))
    await books.predictions.delete(running.id)
    assert await books.written(running) == []
