"""Whoever has the provider's word that it took a submission is believed, late or in bad times."""

import asyncio
from datetime import datetime

import pytest

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import Unavailable
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.engines.upstream import base
from fluxserve.engines.upstream.channel import ChannelKind
from fluxserve.storage.attempts import AttemptRows
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.provider import FakeProvider
from tests.fakes.script import Act, Submit

A = AttemptState
KINDS = [ChannelKind.REPLICATE, ChannelKind.BFL, ChannelKind.WAVESPEED, ChannelKind.OPENAI]
each_kind = pytest.mark.parametrize("kind", KINDS)


class Hiccups(AttemptRows):
    """Rows in a database that does not answer `count` writes to `state`, before or after them."""

    state = A.ACCEPTED
    count = 1
    is_written = False

    async def intend(self, attempt: Attempt, lease_until: datetime) -> None:
        self._hiccup(attempt)
        await super().intend(attempt, lease_until)

    async def move(self, before: Attempt, after: Attempt) -> Attempt:
        is_first = before.state is not after.state
        if self.is_written and is_first and after.state is self.state and self.count:
            await super().move(before, after)
        if is_first:
            self._hiccup(after)
        return await super().move(before, after)

    def _hiccup(self, attempt: Attempt) -> None:
        if attempt.state is self.state and self.count:
            self.count -= 1
            raise Unavailable("the database does not answer")


def hiccups(house: House) -> Hiccups:
    house.attempts = rows = Hiccups(house.database)
    return rows


async def posted(house: House, fake: FakeProvider, asked: Prediction) -> Attempt:
    """The intent of a submission that the provider has, and has not answered yet."""
    await house.until(lambda: fake.submissions)
    (attempt,) = await house.tries(asked)
    assert attempt.state is A.INTENT
    return attempt


# --- a database that does not answer -------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("is_written", [False, True])
async def test_a_database_that_misses_the_acceptance_loses_nothing(
    house: House, lend: Lend, kind: ChannelKind, is_written: bool
) -> None:
    fake, spec = lend(kind)
    hiccups(house).is_written = is_written
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


async def test_a_database_that_misses_a_refusal_keeps_the_prediction_going(
    house: House, lend: Lend
) -> None:
    first, first_spec = lend(ChannelKind.BFL)
    second, second_spec = lend(ChannelKind.REPLICATE)
    first.script.default = Act(submit=Submit.NO_CREDIT)
    hiccups(house).state = A.VOID
    house.channel(first_spec, priority=1)
    house.channel(second_spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert (first.submissions, second.submissions) == (0, 1)


@each_kind
async def test_a_database_that_misses_the_intent_fails_nothing(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind)
    hiccups(house).state = A.INTENT
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


async def test_a_database_that_is_away_for_good_leaves_the_submission_to_be_found(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    monkeypatch.setattr(base, "AGAIN_S", ())
    hiccups(house)
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(lambda: fake.submissions)
    await house.until(lambda: house.desk is not None and not house.desk.in_flight)
    assert (await house.store.get(asked.id)).status is PredictionStatus.RUNNING
    await house.close()
    await house.open()
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


async def test_pictures_that_came_with_the_answer_wait_for_the_store(
    house: House, lend: Lend
) -> None:
    """Nobody can ask OpenAI for them again."""
    fake, spec = lend(ChannelKind.OPENAI)
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    outcomes, refused = house.desk.outcomes, asyncio.Event()
    put = outcomes.put

    async def once(*said: object) -> object:
        if not refused.is_set():
            refused.set()
            raise Unavailable("the file could not be stored")
        return await put(*said)  # type: ignore[arg-type]

    outcomes.put = once  # type: ignore[assignment,method-assign]
    done = await house.made()
    assert refused.is_set()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1
