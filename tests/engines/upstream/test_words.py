"""What somebody asked for is kept with a submission only while its job may have to be found."""

import pytest

from fluxserve.core.attempts import SENT, AttemptState
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind
from fluxserve.storage import attempts as rows
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Outcome, Submit

LISTING = [ChannelKind.REPLICATE, ChannelKind.WAVESPEED]
each_listing = pytest.mark.parametrize("kind", LISTING)


def test_whoever_finds_and_whoever_forgets_mean_the_same_fact() -> None:
    assert rows.SENT == SENT


@each_listing
@pytest.mark.parametrize(
    "act",
    [Act(), Act(outcome=Outcome.FAIL), Act(submit=Submit.INVALID)],
    ids=["done", "failed", "refused"],
)
async def test_an_attempt_that_has_ended_holds_no_prompt(
    house: House, lend: Lend, kind: ChannelKind, act: Act
) -> None:
    fake, spec = lend(kind)
    fake.script.default = act
    house.channel(spec)
    await house.open()
    done = await house.made("a secret", num_outputs=2)

    async def is_closed() -> bool:
        return not any(attempt.state.is_open for attempt in await house.tries(done))

    await house.until(is_closed)
    assert "secret" not in str([attempt.facts for attempt in await house.tries(done)])


@each_listing
async def test_a_lost_submission_holds_its_prompt_until_it_is_given_up(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind, reconcile_grace_s=60.0)
    fake.script.then(Act(submit=Submit.DROP_BEFORE))
    house.channel(spec)
    await house.open()
    asked = await house.ask("a secret")

    async def is_unknown() -> bool:
        return [a.state for a in await house.tries(asked)] == [AttemptState.UNKNOWN]

    await house.until(is_unknown)
    assert SENT in (await house.tries(asked))[0].facts
    await house.crash()
    house.clock.advance(2 * 86_400.0)  # nothing is proved by a list after so long
    await house.open()
    assert (await house.end(asked)).status is PredictionStatus.FAILED

    async def is_given_up() -> bool:
        return (await house.tries(asked))[0].next_at is None

    await house.until(is_given_up)
    assert "secret" not in str((await house.tries(asked))[0].facts)
