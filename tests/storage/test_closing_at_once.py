"""The books of a prediction whose last submissions end at the same moment are closed, once."""

import asyncio

import pytest

from fluxserve.core.attempts import AttemptState
from tests.storage.test_ledger import NOW, Books, K

ROUNDS = 12  # without the lock more than every second one went wrong


@pytest.mark.parametrize("parts", [2, 4])
async def test_parts_that_end_together_close_the_books(books: Books, parts: int) -> None:
    await books.price()
    key = await books.key(budget_micro=100_000_000)
    for _ in range(ROUNDS):
        await books.accept(key, pictures=parts)
        running = await books.start()
        made = [await books.submitted(running, part=i, parts=parts) for i in range(parts)]
        await books.end(running, running.cancel(NOW))
        await asyncio.gather(*(books.closed(one, AttemptState.CANCELED) for one in made))
        assert await books.written(running) == [(K.HOLD, 40_000 * parts), (K.RELEASE, 0)]
    assert await books.month(key) == (0, 0)


async def test_a_cancel_that_meets_a_refusal_closes_the_books(books: Books) -> None:
    await books.price()
    key = await books.key(budget_micro=100_000_000)
    for _ in range(ROUNDS):
        await books.accept(key)
        running = await books.start()
        intent = await books.intended(running)
        canceled = books.end(running, running.cancel(NOW))
        await asyncio.gather(canceled, books.closed(intent, AttemptState.VOID))
        assert await books.written(running) == [(K.HOLD, 40_000), (K.RELEASE, 0)]
    assert await books.month(key) == (0, 0)
