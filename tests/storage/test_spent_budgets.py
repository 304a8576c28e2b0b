"""A budget that bills have used up lets nothing in, be there a price for it or not."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fluxserve.core.access import ApiKey
from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import BudgetExhausted
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ids import new_id
from tests.storage.test_ledger import NOW, Books


async def billed(books: Books, key: ApiKey, cost_micro: int) -> None:
    """One prediction that has no price, and what its provider took for it."""
    await books.accept(key)
    running = await books.start()
    attempt = await books.submitted(running)
    await books.end(running, running.cancel(NOW))
    await books.closed(attempt, AttemptState.DONE, cost_micro)


async def test_bills_alone_can_use_up_a_budget(books: Books) -> None:
    key = await books.key(budget_micro=50_000)
    await billed(books, key, 40_000)
    await billed(books, key, 40_000)
    with pytest.raises(BudgetExhausted, match="2026-11"):
        await books.accept(key)
    assert await books.month(key) == (0, 80_000)


async def test_what_is_held_for_priced_work_counts_for_unpriced_work(books: Books) -> None:
    await books.price(channel="dear")
    key = await books.key(budget_micro=40_000)
    dear = replace(await books.accept(), id=new_id(), engine="dear")
    dear = replace(dear, origin=replace(dear.origin, key_id=key.id))
    await books.predictions.add(dear, Event(prediction_id=dear.id, kind=EventKind.QUEUED, at=NOW))
    with pytest.raises(BudgetExhausted):
        await books.accept(key)
    await books.end(dear, dear.cancel(NOW))
    await books.accept(key)


async def test_a_spent_budget_is_whole_again_in_the_next_month(books: Books) -> None:
    key = await books.key(budget_micro=50_000)
    await billed(books, key, 50_000)
    later = replace(await books.accept(), id=new_id(), created_at=NOW + timedelta(days=30))
    later = replace(later, origin=replace(later.origin, key_id=key.id))
    queued = Event(prediction_id=later.id, kind=EventKind.QUEUED, at=later.created_at)
    assert await books.predictions.add(later, queued) == later


async def test_a_key_without_a_budget_may_be_billed_for_ever(books: Books) -> None:
    key = await books.key()
    await billed(books, key, 40_000_000)
    await books.accept(key)
