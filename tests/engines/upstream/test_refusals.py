"""Refusals cost nothing: they may go to another channel, or end in the provider's words."""

import asyncio

import pytest

from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import ErrorCode
from fluxserve.core.events import EventKind
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Submit

KINDS = [ChannelKind.REPLICATE, ChannelKind.BFL, ChannelKind.WAVESPEED, ChannelKind.OPENAI]
FINAL = [Submit.WRONG_KEY, Submit.NO_CREDIT, Submit.UNKNOWN_MODEL, Submit.INVALID]
WORDS = {
    Submit.WRONG_KEY: ("authenticat", "key"),
    Submit.NO_CREDIT: ("credit", "balance", "quota"),
    Submit.UNKNOWN_MODEL: ("not found", "could not be found", "does not exist"),
    Submit.INVALID: ("must be", "multiple of 32", "size"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FINAL)
async def test_a_refusal_ends_in_the_sentence_of_the_provider(
    house: House, lend: Lend, kind: ChannelKind, fault: Submit
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(submit=fault)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.failure is not None
    assert done.failure.code is ErrorCode.UPSTREAM_FAILED
    assert any(word in done.failure.message.lower() for word in WORDS[fault]), done.failure
    assert [a.state for a in await house.tries(done)] == [AttemptState.VOID]
    assert fake.submissions == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [*FINAL, Submit.RATE_LIMITED, Submit.REDIRECT])
async def test_a_refused_submission_goes_to_the_next_channel(
    house: House, lend: Lend, kind: ChannelKind, fault: Submit
) -> None:
    first, first_spec = lend(kind, name="first")
    second, second_spec = lend(ChannelKind.REPLICATE, name="second")
    first.script.default = Act(submit=fault)
    house.channel(first_spec, priority=1)
    house.channel(second_spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert done.served_by.startswith("second")
    assert (first.submissions, second.submissions) == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_content_that_one_provider_refuses_is_not_shown_to_another(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    first, first_spec = lend(kind, name="first")
    second, second_spec = lend(ChannelKind.REPLICATE, name="second")
    first.script.default = Act(submit=Submit.MODERATED)
    house.channel(first_spec, priority=1)
    house.channel(second_spec)
    await house.open()
    done = await house.made()
    assert done.failure is not None
    assert done.failure.code is ErrorCode.INPUT_REFUSED
    assert second.submissions == 0


async def test_a_throttled_submission_waits_for_its_turn(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.then(Act(submit=Submit.RATE_LIMITED, retry_after_s=1))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 1


async def test_a_lost_answer_is_never_a_reason_for_another_channel(
    house: House, lend: Lend
) -> None:
    first, first_spec = lend(ChannelKind.BFL, name="first")
    second, second_spec = lend(ChannelKind.REPLICATE, name="second")
    first.script.default = Act(submit=Submit.DROP_AFTER)
    house.channel(first_spec, priority=1)
    house.channel(second_spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.FAILED
    assert (first.submissions, second.submissions) == (1, 0)


async def test_an_unreachable_channel_is_passed_over(house: House, lend: Lend) -> None:
    _, dead = lend(ChannelKind.BFL, name="dead", base_url="http://127.0.0.1:9")
    second, second_spec = lend(ChannelKind.REPLICATE, name="second")
    house.channel(dead, priority=1)
    house.channel(second_spec)
    await house.open()
    ends = [await house.made() for _ in range(3)]
    assert all(done.status is PredictionStatus.SUCCEEDED for done in ends)
    assert second.submissions == 3


async def test_a_dead_provider_ends_in_a_failure_once_patience_is_over(
    house: House, lend: Lend
) -> None:
    _, dead = lend(ChannelKind.BFL, base_url="http://127.0.0.1:9", patience_s=0.3)
    house.channel(dead)
    await house.open()
    asked = [await house.ask() for _ in range(5)]
    for one in asked:
        done = await house.end(one)
        assert done.failure is not None
        assert "cannot be reached" in done.failure.message


async def test_waiting_for_a_channel_that_rests_costs_next_to_nothing(
    house: House, lend: Lend
) -> None:
    _, dead = lend(
        ChannelKind.BFL, base_url="http://127.0.0.1:9", cool_down_s=60, cool_down_max_s=60
    )
    house.channel(dead)
    await house.open()
    moves: list[str] = []
    house.bus.hook(lambda event: moves.append(event.kind))
    asked = [await house.ask()]
    # Claimed, refused, put back; claimed once more to find that it has to wait.
    await house.until(lambda: moves.count(EventKind.REQUEUED) == 2)
    asked += [await house.ask(f"fox {number}") for number in range(20)]  # each wakes the channel
    for _ in range(200):
        await asyncio.sleep(0)  # room for whatever would spin
    assert moves.count(EventKind.STARTED) == 2
    for one in asked:
        assert (await house.store.get(one.id)).status is PredictionStatus.QUEUED


async def test_a_channel_that_failed_rests_and_comes_back(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.REPLICATE, cool_down_s=0.2)
    fake.script.then(Act(submit=Submit.WRONG_KEY))
    house.channel(spec)
    await house.open()
    await house.made()
    assert house.upstreams is not None
    report = house.upstreams.reports()[0]
    assert report.state == "resting"
    assert "authentication" in report.trouble
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED
    assert house.upstreams.reports()[0].state == "ready"


async def test_no_more_is_submitted_than_a_channel_may_have_open(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.REPLICATE, concurrency=2)
    fake.script.default = Act(pending_polls=3)
    house.channel(spec)
    await house.open()
    asked = [await house.ask() for _ in range(8)]
    most = 0

    def all_sent() -> bool:
        nonlocal most
        most = max(most, sum(work.outcome is None for work in list(fake.works.values())))
        return fake.submissions == 8

    await house.until(all_sent)
    for one in asked:
        assert (await house.end(one)).status is PredictionStatus.SUCCEEDED
    assert most <= 2
