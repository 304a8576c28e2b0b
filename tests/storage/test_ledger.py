"""Money: held with the acceptance, settled with the end, never more than a budget allows."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from fluxserve.core.access import ApiKey, Caller
from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import BudgetExhausted, Conflict, ErrorCode, Failure
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.money import Accounts, EntryKind, Price, Rule
from fluxserve.core.prediction import OutputImage, Prediction
from fluxserve.core.request import BlobRef, ImageRequest, Origin, Task
from fluxserve.storage.database import Transition
from fluxserve.storage.keys import SqlKeyStore
from fluxserve.storage.ledger import (
    BudgetedAttemptStore,
    BudgetedPredictionStore,
    SqlMoneyStore,
)
from fluxserve.storage.prices import ADD_PRICE
from fluxserve.storage.sqlite import SqliteDatabase

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
MODEL = "black-forest-labs/flux-kontext-pro"
REQUEST = ImageRequest(
    model=MODEL,
    task=Task.TEXT_TO_IMAGE,
    prompt="a fox",
    width=1000,
    height=1000,
    num_steps=10,
    guidance=2.5,
    seed=1,
)
K = EntryKind


@dataclass(slots=True)
class Books:
    """The stores of one database."""

    predictions: BudgetedPredictionStore
    attempts: BudgetedAttemptStore
    money: SqlMoneyStore
    keys: SqlKeyStore

    async def price(self, **said: object) -> Price:
        rule = Rule(**({"per_image": 40_000} if "rule" not in said else {}))
        price = Price(id=new_id(), model=MODEL, channel="*", rule=rule, valid_from=NOW)
        price = replace(price, **said)  # type: ignore[arg-type]
        await self.money.add_price(price)
        return price

    async def key(self, budget_micro: int = 0) -> ApiKey:
        key = ApiKey(
            id=new_id(),
            name="",
            prefix="fx_",
            hash=new_id(),
            created_at=NOW,
            budget_micro=budget_micro,
        )
        await self.keys.add(key)
        return key

    async def accept(
        self,
        key: ApiKey | None = None,
        pictures: int = 1,
        size: tuple[int, int] = (1000, 1000),
    ) -> Prediction:
        width, height = size
        prediction = Prediction(
            id=new_id(),
            request=replace(REQUEST, num_outputs=pictures, width=width, height=height),
            origin=Origin(dialect="native", key_id=key.id if key else None),
            engine="channel",
            created_at=NOW,
        )
        event = Event(prediction_id=prediction.id, kind=EventKind.QUEUED, at=NOW)
        return await self.predictions.add(prediction, event)

    async def start(self) -> Prediction:
        later = NOW + timedelta(days=1)
        claimed = await self.predictions.claim("channel", owner="o", at=NOW, lease_until=later)
        assert claimed is not None
        return claimed[0]

    async def end(self, before: Prediction, after: Prediction) -> None:
        event = Event(prediction_id=after.id, kind=EventKind.FINISHED, at=NOW)
        await self.predictions.move(before, after, event)

    async def intended(
        self,
        running: Prediction,
        part: int = 0,
        parts: int = 1,
        facts: Mapping[str, str] | None = None,
    ) -> Attempt:
        intent = Attempt(
            id=new_id(),
            prediction_id=running.id,
            fence=running.attempt,
            channel="channel",
            model="theirs",
            part=part,
            parts=parts,
            created_at=NOW,
            next_at=NOW,
            facts=facts or {},
        )
        await self.attempts.intend(intent, NOW + timedelta(hours=1))
        return intent

    async def submitted(
        self, running: Prediction, cost_micro: int = 0, part: int = 0, parts: int = 1
    ) -> Attempt:
        intent = await self.intended(running, part, parts)
        state, upstream_id = AttemptState.ACCEPTED, new_id()
        accepted = replace(intent, state=state, upstream_id=upstream_id, cost_micro=cost_micro)
        return await self.attempts.move(intent, accepted)

    async def closed(self, attempt: Attempt, state: AttemptState, cost_micro: int = 0) -> None:
        after = replace(attempt, state=state, finished_at=NOW, next_at=None, cost_micro=cost_micro)
        await self.attempts.move(attempt, after)

    async def written(self, prediction: Prediction) -> list[tuple[EntryKind, int]]:
        return [(e.kind, e.micro) for e in await self.money.entries(prediction.id)]

    async def month(self, key: ApiKey | None = None) -> tuple[int, int]:
        budget = await self.money.budget(key.id if key else "", NOW)
        assert budget is not None
        return budget.held_micro, budget.spent_micro


@pytest.fixture
async def books() -> AsyncIterator[Books]:
    database = SqliteDatabase(None)
    await database.start()
    yield Books(
        BudgetedPredictionStore(database),
        BudgetedAttemptStore(database),
        SqlMoneyStore(database),
        SqlKeyStore(database),
    )
    await database.stop()


def done(prediction: Prediction, pictures: int = 1) -> Prediction:
    blob = BlobRef(key="k", mime="image/png", size_bytes=1)
    return prediction.succeed((OutputImage(blob=blob, seed=1),) * pictures, NOW, {})


async def test_what_has_no_price_leaves_no_trace(books: Books) -> None:
    prediction = await books.accept()
    assert await books.written(prediction) == []


async def test_acceptance_holds_and_success_settles(books: Books) -> None:
    await books.price()
    prediction = await books.accept(pictures=2)
    assert await books.written(prediction) == [(K.HOLD, 80_000)]
    assert await books.month() == (80_000, 0)
    running = await books.start()
    await books.end(running, done(running, 2))
    assert await books.written(prediction) == [(K.HOLD, 80_000), (K.SETTLE, 80_000)]
    assert await books.month() == (0, 80_000)


async def test_only_delivered_pictures_are_paid_for(books: Books) -> None:
    await books.price()
    prediction = await books.accept(pictures=2)
    running = await books.start()
    await books.end(running, done(running, 1))
    assert (await books.written(prediction))[1] == (K.SETTLE, 40_000)
    assert await books.month() == (0, 40_000)


async def test_failed_and_canceled_work_costs_nothing(books: Books) -> None:
    await books.price()
    failed, canceled = await books.accept(), await books.accept()
    running = await books.start()
    failure = Failure(code=ErrorCode.ENGINE_FAILED, message="broken")
    await books.end(running, running.fail(failure, NOW))
    other = canceled if running.id == failed.id else failed
    await books.end(other, other.cancel(NOW))
    for prediction in (failed, canceled):
        assert await books.written(prediction) == [(K.HOLD, 40_000), (K.RELEASE, 0)]
    assert await books.month() == (0, 0)


async def test_the_hold_stays_while_a_provider_may_still_charge(books: Books) -> None:
    await books.price()
    prediction = await books.accept()
    running = await books.start()
    attempt = await books.submitted(running)
    await books.end(running, running.cancel(NOW))
    assert await books.month() == (40_000, 0)
    await books.closed(attempt, AttemptState.DONE)
    assert await books.written(prediction) == [(K.HOLD, 40_000), (K.SETTLE, 40_000)]
    assert await books.month() == (0, 40_000)


async def test_a_cancel_that_reached_the_provider_releases(books: Books) -> None:
    await books.price()
    prediction = await books.accept()
    running = await books.start()
    attempt = await books.submitted(running)
    await books.end(running, running.cancel(NOW))
    await books.closed(attempt, AttemptState.CANCELED)
    assert (await books.written(prediction))[1] == (K.RELEASE, 0)


async def test_an_unknown_submission_keeps_its_hold_until_it_is_known(books: Books) -> None:
    await books.price()
    prediction = await books.accept()
    running = await books.start()
    attempt = await books.submitted(running)
    failure = Failure(code=ErrorCode.UPSTREAM_UNKNOWN, message="who knows")
    await books.end(running, running.fail(failure, NOW))
    assert await books.written(prediction) == [(K.HOLD, 40_000)]
    await books.closed(attempt, AttemptState.DONE, cost_micro=50_000)  # a late callback
    assert (await books.written(prediction))[1] == (K.SETTLE, 50_000)


async def test_without_a_price_the_bill_of_the_provider_is_what_was_spent(books: Books) -> None:
    prediction = await books.accept()
    running = await books.start()
    attempt = await books.submitted(running, cost_micro=40_000)
    await books.end(running, done(running))
    await books.closed(attempt, AttemptState.DONE, cost_micro=40_000)
    assert await books.written(prediction) == [(K.SETTLE, 40_000)]
    assert await books.month() == (0, 40_000)


async def test_a_budget_holds_under_concurrency(books: Books) -> None:
    await books.price()
    key = await books.key(budget_micro=100_000)  # room for two
    tries = await asyncio.gather(*(books.accept(key) for _ in range(20)), return_exceptions=True)
    accepted = [one for one in tries if isinstance(one, Prediction)]
    refused = [one for one in tries if isinstance(one, BudgetExhausted)]
    assert (len(accepted), len(refused)) == (2, 18)
    assert await books.month(key) == (80_000, 0)
    for one in accepted:
        assert (await books.predictions.get(one.id)).id == one.id


async def test_a_refused_acceptance_leaves_nothing_behind(books: Books) -> None:
    await books.price()
    key = await books.key(budget_micro=10_000)
    with pytest.raises(BudgetExhausted, match="2026-11"):
        await books.accept(key)
    later = NOW + timedelta(days=1)
    assert await books.predictions.claim("channel", owner="o", at=NOW, lease_until=later) is None
    assert await books.month(key) == (0, 0) if await books.money.budget(key.id, NOW) else True


async def test_a_released_hold_makes_room_again(books: Books) -> None:
    await books.price()
    key = await books.key(budget_micro=40_000)
    first = await books.accept(key)
    with pytest.raises(BudgetExhausted):
        await books.accept(key)
    await books.end(first, first.cancel(NOW))
    await books.accept(key)


async def test_a_new_version_of_a_price_leaves_old_holds_alone(books: Books) -> None:
    await books.price()
    prediction = await books.accept()
    await books.price(rule=Rule(per_image=90_000), valid_from=NOW - timedelta(seconds=1))
    running = await books.start()
    await books.end(running, done(running))
    assert (await books.written(prediction))[1] == (K.SETTLE, 40_000)


async def test_the_more_particular_price_wins(books: Books) -> None:
    await books.price(model="*", rule=Rule(per_image=1))
    await books.price(channel="channel", rule=Rule(per_image=3))
    await books.price(rule=Rule(per_image=2))
    await books.price(channel="another", rule=Rule(per_image=4))
    assert await books.written(await books.accept()) == [(K.HOLD, 3)]


def test_a_price_adds_up_pictures_megapixels_steps_and_options() -> None:
    options = {"go_fast": 100, "raw": 1_000_000}
    rule = Rule(per_image=10, per_megapixel=100, per_step=3, options=options)
    assert rule.cost(replace(REQUEST, go_fast=True), 2) == 2 * (10 + 100 + 30 + 100)


async def test_usage_is_told_by_key_model_channel_and_day(books: Books) -> None:
    await books.price()
    one, two = await books.key(), await books.key()
    for key in (one, one, two):
        await books.accept(key)
        running = await books.start()
        await books.end(running, done(running))
    rows = await books.money.usage(key_id=None, start=NOW, end=NOW + timedelta(days=1))
    assert {(r.key_id, r.predictions, r.micro) for r in rows} == {
        (one.id, 2, 80_000),
        (two.id, 1, 40_000),
    }
    assert {(r.model, r.channel, r.day) for r in rows} == {(MODEL, "channel", "2026-11-21")}
    mine = await books.money.usage(key_id=two.id, start=NOW, end=NOW + timedelta(days=1))
    assert [r.micro for r in mine] == [40_000]


async def test_the_balance_is_what_is_left_of_the_month(books: Books) -> None:
    await books.price()
    key, free = await books.key(budget_micro=100_000), await books.key()
    accounts = Accounts(books.money, lambda: NOW)
    assert await accounts.balance_micro(Caller(key=free)) is None
    assert await accounts.balance_micro(Caller(key=key)) == 100_000
    await books.accept(key)
    assert await accounts.balance_micro(Caller(key=key)) == 60_000


async def test_a_job_belongs_to_one_attempt_only(books: Books) -> None:
    await books.accept()
    running = await books.start()
    first = await books.submitted(running)
    await books.accept()
    second = await books.submitted(await books.start())
    stolen = replace(second, upstream_id=first.upstream_id)
    with pytest.raises(Conflict):
        await books.attempts.move(second, stolen)


async def test_no_second_submission_is_intended_while_one_is_open(books: Books) -> None:
    await books.accept()
    running = await books.start()
    first = await books.submitted(running)
    with pytest.raises(Conflict):
        await books.submitted(running)
    await books.closed(first, AttemptState.FAILED)
    await books.submitted(running)


async def test_a_lost_start_intends_nothing(books: Books) -> None:
    await books.accept()
    running = await books.start()
    with pytest.raises(Conflict):
        await books.submitted(replace(running, attempt=running.attempt - 1))


async def test_a_price_that_cannot_be_read_stops_nobody(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"id": "f" * 32, "model": "*", "channel": "*", "rule": "{", "valid_from": 0}
    unknown = {**broken, "id": "e" * 32, "rule": '{"per_mile": 3}'}

    def spoil() -> Transition[None]:
        for row in (broken, unknown):
            yield ADD_PRICE(row)

    await books.money._database.run(spoil())
    assert (await books.accept()).id
    good = await books.price()
    for _ in range(2):
        assert await books.money.prices() == [good]
    assert len([line for line in caplog.records if "cannot be read" in line.message]) == 2


async def test_usage_still_tells_the_model_once_the_prediction_is_gone(books: Books) -> None:
    await books.price()
    await books.accept()
    running = await books.start()
    await books.end(running, done(running))
    span = {"start": NOW, "end": NOW + timedelta(days=1)}
    before = await books.money.usage(key_id=None, **span)
    assert [(row.model, row.channel, row.micro) for row in before] == [(MODEL, "channel", 40_000)]
    await books.predictions.delete(running.id)
    assert [row.model for row in await books.money.usage(key_id=None, **span)] == [MODEL]


async def test_a_size_that_followed_from_an_input_is_paid_for_as_it_came_out(books: Books) -> None:
    await books.price(rule=Rule(per_megapixel=10_000))
    asked = await books.accept(size=(0, 0))
    assert await books.written(asked) == [(K.HOLD, 10_486)]
    running = await books.start()
    blob = BlobRef(key="k", mime="image/png", size_bytes=1, width=2000, height=1500)
    outputs = (OutputImage(blob=blob, seed=1),) * 2
    await books.end(running, running.succeed(outputs, NOW, {}))
    assert (await books.written(asked))[-1] == (K.SETTLE, 60_000)
