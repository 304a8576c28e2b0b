"""A paid submission is never doubled, and never lost where the provider lets itself be asked."""

import asyncio
from datetime import timedelta
from functools import partial

import pytest

from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import ErrorCode
from fluxserve.core.events import Event
from fluxserve.core.ports import Output
from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.engines.upstream.answers import State, Ticket
from fluxserve.engines.upstream.channel import ChannelKind, OnUnknown
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Outcome, Submit

LISTING = [ChannelKind.REPLICATE, ChannelKind.WAVESPEED]
SILENT = [ChannelKind.BFL, ChannelKind.OPENAI]
LOST_AFTER = [Submit.DROP_AFTER, Submit.ERROR_AFTER, Submit.HTML_AFTER, Submit.NO_ID]


@pytest.mark.parametrize("kind", LISTING)
@pytest.mark.parametrize("fault", LOST_AFTER)
async def test_a_lost_answer_is_found_in_the_list_of_the_provider(
    house: House, lend: Lend, kind: ChannelKind, fault: Submit
) -> None:
    fake, spec = lend(kind)
    fake.script.then(Act(submit=fault))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


@pytest.mark.parametrize("kind", LISTING)
async def test_an_answer_that_comes_after_our_patience_is_found_in_the_list(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind, submit_timeout_s=0.2)
    fake.script.then(Act(accept_s=1.0))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


@pytest.mark.parametrize("kind", LISTING)
@pytest.mark.parametrize("fault", [Submit.DROP_BEFORE, Submit.ERROR_BEFORE, Submit.HTML_BEFORE])
async def test_what_is_absent_from_the_list_is_submitted_again_after_the_grace_period(
    house: House, lend: Lend, kind: ChannelKind, fault: Submit
) -> None:
    fake, spec = lend(kind, reconcile_grace_s=0.3)
    fake.script.then(Act(submit=fault))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1
    states = [attempt.state for attempt in await house.tries(done)]
    assert states == [AttemptState.VOID, AttemptState.DONE]


@pytest.mark.parametrize("kind", LISTING)
async def test_nothing_is_submitted_again_within_the_grace_period(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind, reconcile_grace_s=60.0)
    fake.script.then(Act(submit=Submit.DROP_BEFORE))
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(lambda: len(fake.heard) >= 2)  # the submission and a look at the list
    assert [a.state for a in await house.tries(asked)] == [AttemptState.UNKNOWN]
    assert fake.submissions == 0


@pytest.mark.parametrize("kind", SILENT)
@pytest.mark.parametrize("fault", [Submit.DROP_AFTER, Submit.ERROR_AFTER, Submit.HTML_AFTER])
async def test_where_nobody_can_tell_the_prediction_fails_and_stays_visible(
    house: House, lend: Lend, kind: ChannelKind, fault: Submit
) -> None:
    fake, spec = lend(kind)
    fake.script.then(Act(submit=fault))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.failure is not None
    assert done.failure.code is ErrorCode.UPSTREAM_UNKNOWN
    assert fake.submissions == 1
    unknown = await house.attempts.page(state=AttemptState.UNKNOWN)
    assert [attempt.prediction_id for attempt in unknown] == [done.id]
    assert house.upstreams is not None
    assert house.upstreams.reports()[0].unknown == 1


@pytest.mark.parametrize("kind", SILENT)
async def test_the_operator_may_choose_to_submit_again(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind, on_unknown=OnUnknown.RESUBMIT)
    fake.script.then(Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 2  # the risk that was taken
    assert house.upstreams is not None
    assert house.upstreams.reports()[0].resubmitted == 1


async def test_two_equal_requests_whose_answers_were_lost_are_two_jobs(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.then(Act(submit=Submit.DROP_AFTER), Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    both = [await house.ask(seed=7), await house.ask(seed=7)]
    ends = [await house.end(asked) for asked in both]
    assert [done.status for done in ends] == [PredictionStatus.SUCCEEDED] * 2
    ids = {(await house.tries(done))[0].upstream_id for done in ends}
    assert ids == set(fake.works)


async def test_an_error_inside_a_success_ends_the_prediction_without_a_second_try(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.then(Act(submit=Submit.ERROR_INSIDE))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.failure is not None
    assert done.failure.message == "replicate: upstream exploded"
    assert len(await house.tries(done)) == 1
    assert fake.submissions == 0


async def test_a_killed_server_finds_its_submission_again(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.REPLICATE, submit_timeout_s=30.0)
    fake.script.then(Act(accept_s=20.0))  # the answer will never be read
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(lambda: fake.submissions == 1)
    await house.crash()
    assert [a.state for a in await house.tries(asked)] == [AttemptState.INTENT]
    await house.open()
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


async def test_accepted_jobs_survive_a_restart(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.BFL)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    await house.open()
    asked = [await house.ask() for _ in range(20)]
    for one in asked:
        await house.until(partial(_has_state, house, one.id, AttemptState.ACCEPTED))
    await house.crash()
    for work in fake.works.values():
        work.act = Act()
    await house.open()
    ends = await asyncio.gather(*(house.end(one) for one in asked))
    assert all(done.status is PredictionStatus.SUCCEEDED for done in ends)
    assert fake.submissions == 20


async def test_a_callback_proves_that_a_lost_submission_happened(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.BFL)
    house.callback_base = "http://127.0.0.1:9/callbacks/"  # delivered by hand below
    fake.script.then(Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(lambda: _has_state(house, asked.id, AttemptState.UNKNOWN))
    (work,) = fake.works.values()
    assert work.webhook is not None
    token = work.webhook.rpartition("/")[2]
    assert house.upstreams is not None
    for _ in range(3):  # told again and again: the same
        await house.upstreams.heard(token, {"id": work.id, "status": "Ready"})
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 1


async def test_a_callback_after_the_end_brings_the_bill_and_no_second_life(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.BFL)
    fake.script.then(Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.FAILED
    (attempt,) = await house.tries(done)
    assert house.upstreams is not None
    await house.upstreams.heard(attempt.id, {"id": next(iter(fake.works))})
    await house.until(lambda: _has_state(house, done.id, AttemptState.DONE))
    assert (await house.store.get(done.id)).status is PredictionStatus.FAILED


async def test_a_frozen_process_does_not_submit_what_was_given_up_meanwhile(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    house.channel(spec)
    await house.open()
    intend = house.attempts.intend

    async def slowly(attempt: object, lease_until: object) -> None:
        await intend(attempt, lease_until)  # type: ignore[arg-type]
        house.clock.advance(6)  # stopped right here, and continued

    house.attempts.intend = slowly  # type: ignore[method-assign]
    asked = await house.ask()
    await house.until(lambda: _has_state(house, asked.id, AttemptState.VOID))
    house.attempts.intend = intend  # type: ignore[method-assign]
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 1


async def _has_state(house: House, prediction_id: str, state: AttemptState) -> bool:
    return any(a.state is state for a in await house.attempts.of(prediction_id))


async def lose_lease(house: House) -> None:
    """As the keeper does with whatever has run past its lease."""
    assert house.desk is not None
    for lost in await house.store.expired(house.clock() + timedelta(days=1)):
        await house.desk.put_back(lost)


@pytest.mark.parametrize("kind", [*LISTING, *SILENT])
async def test_a_lease_lost_while_the_picture_comes_costs_no_second_submission(
    house: House, lend: Lend, kind: ChannelKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(kind)
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    outcomes, times = house.desk.outcomes, iter(range(100))
    put = outcomes.put

    async def late(prediction: Prediction, output: Output) -> tuple[OutputImage, Event]:
        if next(times) == 0:
            await lose_lease(house)
        return await put(prediction, output)

    monkeypatch.setattr(outcomes, "put", late)
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert done.attempt > 1
    assert fake.submissions == 1
    assert [a.state for a in await house.tries(done)] == [AttemptState.DONE]


@pytest.mark.parametrize("kind", [*LISTING, ChannelKind.BFL])
@pytest.mark.parametrize("outcome", [Outcome.SUCCEED, Outcome.FAIL])
async def test_a_lease_lost_before_a_poll_costs_no_second_submission(
    house: House,
    lend: Lend,
    kind: ChannelKind,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(outcome=outcome)
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    provider, times = house.desk.channels[spec.name].provider, iter(range(100))
    poll = provider.poll

    async def late(ticket: Ticket) -> State:
        state = await poll(ticket)
        if next(times) == 0:
            await lose_lease(house)
        return state

    monkeypatch.setattr(provider, "poll", late)
    done = await house.made()
    is_failed = outcome is Outcome.FAIL
    assert done.status is (PredictionStatus.FAILED if is_failed else PredictionStatus.SUCCEEDED)
    assert done.attempt > 1
    assert fake.submissions == 1
