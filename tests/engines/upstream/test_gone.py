"""A channel is taken out of the configuration while parts of a prediction are here already."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from fluxserve.core.attempts import AttemptState
from fluxserve.core.ids import new_id
from fluxserve.core.money import EntryKind, Price, Rule
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind
from fluxserve.engines.upstream.following import ORPHAN_S
from fluxserve.storage.ledger import BudgetedAttemptStore, BudgetedPredictionStore, SqlMoneyStore
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Outcome

S = AttemptState


def are(house: House, prediction: Prediction, *states: AttemptState) -> Callable[[], Any]:
    async def look() -> bool:
        return [a.state for a in await house.tries(prediction)] == list(states)

    return look


async def priced(house: House) -> SqlMoneyStore:
    """Let the house keep books; a picture costs 0.04 USD."""
    house.store = BudgetedPredictionStore(house.database)
    house.attempts = BudgetedAttemptStore(house.database)
    money = SqlMoneyStore(house.database)
    since = house.clock() - timedelta(days=1)
    rule = Rule(per_image=40_000)
    await money.add_price(Price(id=new_id(), model="*", channel="*", rule=rule, valid_from=since))
    return money


async def half_fetched(house: House, lend: Lend, kind: ChannelKind) -> Prediction:
    """Of two pictures one is here, and the other never comes."""
    fake, spec = lend(kind)
    fake.script.then(Act(), Act(outcome=Outcome.HANG))
    house.channel(spec)
    await house.open()
    asked = await house.ask(num_outputs=2)
    await house.until(are(house, asked, S.FETCHED, S.ACCEPTED))
    return asked


async def reopened_without_channels(house: House, after_s: float) -> None:
    """As if the server had been killed, and its configuration changed."""
    if house.upstreams is not None:
        await house.crash()
    house.specs.clear()
    house.routes.clear()
    house.clock.advance(after_s)
    await house.open()


async def test_a_part_that_is_here_is_paid_for_when_the_others_never_come(
    house: House, lend: Lend
) -> None:
    money = await priced(house)
    asked = await half_fetched(house, lend, ChannelKind.REPLICATE)
    await reopened_without_channels(house, ORPHAN_S + 1)
    done = await house.end(asked)
    assert done.status is PredictionStatus.FAILED
    house.clock.advance(120.0)
    assert house.desk is not None
    house.desk.due.set()
    await house.until(are(house, asked, S.DONE, S.FAILED))
    booked = [(entry.kind, entry.micro) for entry in await money.entries(asked.id)]
    assert booked == [(EntryKind.HOLD, 80_000), (EntryKind.SETTLE, 40_000)]


async def test_pictures_that_are_all_here_need_their_channel_no_more(
    house: House, lend: Lend
) -> None:
    asked = await half_fetched(house, lend, ChannelKind.BFL)
    await house.crash()
    first, second = await house.tries(asked)
    fetched = replace(second, state=S.FETCHED, outputs=first.outputs)
    await house.attempts.move(second, fetched)  # and killed before it could tell
    await reopened_without_channels(house, 0.0)
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert len(done.outputs) == 2
    await house.until(are(house, asked, S.DONE, S.DONE))


async def test_a_part_that_nobody_submits_any_more_is_not_waited_for_for_ever(
    house: House, lend: Lend
) -> None:
    asked = await half_fetched(house, lend, ChannelKind.BFL)
    await house.crash()
    _, second = await house.tries(asked)
    at = house.clock()
    failed = replace(second, state=S.FAILED, next_at=None, finished_at=at)
    await house.attempts.move(second, failed)
    await reopened_without_channels(house, ORPHAN_S + 1)
    assert (await house.end(asked)).status is PredictionStatus.FAILED
    await house.until(are(house, asked, S.DONE, S.FAILED))


async def test_a_job_of_a_channel_that_another_server_has_is_left_to_that_one(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.BFL)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(are(house, asked, S.ACCEPTED))
    house.elsewhere.add(spec.name)
    await reopened_without_channels(house, ORPHAN_S + 1)
    before = (await house.tries(asked))[0].next_at

    async def is_put_off() -> bool:
        return (await house.tries(asked))[0].next_at != before

    await house.until(is_put_off)
    assert not (await house.store.get(asked.id)).is_terminal
    assert await are(house, asked, S.ACCEPTED)()

    house.elsewhere.clear()
    house.clock.advance(120.0)
    assert house.desk is not None
    house.desk.due.set()
    assert (await house.end(asked)).status is PredictionStatus.FAILED
