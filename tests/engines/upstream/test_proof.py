"""Whoever has the provider's word that it took a submission is believed, late or in bad times."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import Conflict, Unavailable
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


async def posted(
    house: House, lend: Lend, kind: ChannelKind = ChannelKind.BFL
) -> tuple[FakeProvider, Prediction, Attempt]:
    """A prediction with the intent of its submission: the provider has it, and is slow to say."""
    fake, spec = lend(kind)
    fake.script.then(Act(accept_s=0.4))
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(lambda: fake.submissions)
    (attempt,) = await house.tries(asked)
    assert attempt.state is A.INTENT
    return fake, asked, attempt


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


# --- somebody else who came first ----------------------------------------------------------------


@each_kind
async def test_proof_is_believed_although_somebody_doubted_meanwhile(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, asked, attempt = await posted(house, lend, kind)
    await house.attempts.move(attempt, replace(attempt, state=A.UNKNOWN, next_at=None))
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert [one.state for one in await house.tries(asked)] == [A.DONE]
    assert fake.submissions == 1


async def test_proof_is_believed_after_the_prediction_was_given_up(
    house: House, lend: Lend
) -> None:
    _, asked, attempt = await posted(house, lend)
    await house.attempts.move(attempt, replace(attempt, state=A.UNKNOWN, next_at=None))
    assert house.service is not None
    await house.service.cancel(asked.id)
    await house.until(lambda: is_at(house, asked, A.DONE))
    (after,) = await house.tries(asked)
    assert after.cost_micro > 0  # the bill is known


async def is_at(house: House, asked: Prediction, state: A) -> bool:
    return [one.state for one in await house.tries(asked)] == [state]


async def test_proof_of_what_was_voided_is_told_and_repeats_nothing(
    house: House, lend: Lend, caplog: pytest.LogCaptureFixture
) -> None:
    fake, asked, attempt = await posted(house, lend)
    void = replace(attempt, state=A.VOID, next_at=None, finished_at=house.clock())
    await house.attempts.move(attempt, void)  # as `on_unknown = "resubmit"` does
    assert house.desk is not None
    await house.desk.put_back(await house.store.get(asked.id))
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    await house.until(lambda: "paid for twice" in caplog.text)
    assert next(iter(fake.works)) in caplog.text
    assert [one.state for one in await house.tries(asked)] == [A.VOID, A.DONE]
    assert fake.submissions == 2


async def test_what_the_answer_says_is_kept_where_a_callback_was_faster(
    house: House, lend: Lend
) -> None:
    fake, asked, attempt = await posted(house, lend)
    heard = replace(attempt, state=A.ACCEPTED, upstream_id=next(iter(fake.works)), next_at=None)
    await house.attempts.move(attempt, heard)
    await house.until(lambda: has_cost(house, asked))
    (after,) = await house.tries(asked)
    assert (after.state, after.upstream_id) == (A.ACCEPTED, heard.upstream_id)


async def has_cost(house: House, asked: Prediction) -> bool:
    return all(one.cost_micro for one in await house.tries(asked))


async def test_a_prediction_that_goes_back_to_the_queue_waits_for_the_database(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.BFL)
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    faults = [Conflict("the lease was lost"), Unavailable("the database does not answer")]
    intend, requeue = house.attempts.intend, house.desk.outcomes.requeue

    async def refused(*said: Any) -> None:
        if len(faults) == 2:
            raise faults.pop(0)
        await intend(*said)

    async def away(*said: Any) -> Any:
        if faults:
            raise faults.pop(0)
        return await requeue(*said)

    monkeypatch.setattr(house.attempts, "intend", refused)
    monkeypatch.setattr(house.desk.outcomes, "requeue", away)
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert not faults
    assert done.attempt == 2
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
