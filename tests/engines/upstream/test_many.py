"""What concerns many rows at once passes over none of them."""

from datetime import timedelta

import pytest

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import Conflict
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.base import OWNER
from fluxserve.engines.upstream.channel import ChannelKind
from fluxserve.storage import predictions
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Outcome

MANY = 120  # more than a page of the store


async def test_a_restart_takes_up_everything_that_was_claimed_but_never_submitted(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "SWEEP_MAX", 10)
    fake, spec = lend(ChannelKind.BFL, concurrency=0)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    await house.open()
    assert house.upstreams is not None
    await house.upstreams.stop()
    asked = [await house.ask() for _ in range(MANY)]
    until = house.clock() + timedelta(hours=1)
    while await house.store.claim(spec.name, owner=OWNER, at=house.clock(), lease_until=until):
        pass
    await house.open()
    await house.until(lambda: fake.submissions == MANY)
    rows = [await house.store.get(prediction.id) for prediction in asked]
    assert {row.status for row in rows} == {PredictionStatus.RUNNING}
    assert {row.attempt for row in rows} == {2}


async def test_every_part_of_a_canceled_prediction_is_hurried_though_one_is_in_hand(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE, poll_s=60.0, poll_max_s=60.0)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    await house.open()
    asked = await house.ask(num_outputs=3)

    async def is_accepted() -> bool:
        return [a.state for a in await house.tries(asked)] == [AttemptState.ACCEPTED] * 3

    await house.until(is_accepted)
    first = (await house.tries(asked))[0]
    move = house.attempts.move

    async def in_hand(before: Attempt, after: Attempt) -> Attempt:
        if before.id == first.id:
            raise Conflict("somebody else has it")
        return await move(before, after)

    monkeypatch.setattr(house.attempts, "move", in_hand)
    assert house.service is not None
    await house.service.cancel(asked.id)
    await house.until(lambda: sum(work.canceled for work in fake.works.values()) == 2)
