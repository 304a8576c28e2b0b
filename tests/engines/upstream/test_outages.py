"""After an outage that lasted past the deadline, work that was paid for is still fetched."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import ErrorCode
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.engines.upstream.answers import PollLie, PollTrouble
from fluxserve.engines.upstream.base import Channel
from fluxserve.engines.upstream.channel import ChannelKind
from fluxserve.engines.upstream.resolving import TROUBLES_MAX
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.provider import FakeProvider
from tests.fakes.script import Act, Outcome, Poll, Submit

POLLED = [ChannelKind.REPLICATE, ChannelKind.BFL, ChannelKind.WAVESPEED]
each_polled = pytest.mark.parametrize("kind", POLLED)
Call = Callable[..., Awaitable[Any]]


async def has_state(house: House, prediction: Prediction, state: AttemptState) -> bool:
    return [a.state for a in await house.tries(prediction)] == [state]


async def away(
    house: House, lend: Lend, kind: ChannelKind, then: Act
) -> tuple[FakeProvider, Prediction]:
    """A server that comes back an hour after its submission was accepted, which is now `then`."""
    fake, spec = lend(kind)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(lambda: has_state(house, asked, AttemptState.ACCEPTED))
    await house.crash()
    for work in fake.works.values():
        work.act, work.polls = then, 0
    house.clock.advance(2 * spec.deadline_s)
    await house.open()
    return fake, asked


def channel_of(house: House) -> Channel:
    assert house.desk is not None
    (channel,) = house.desk.channels.values()
    return channel


def failing(call: Call, *faults: Exception) -> Call:
    """`call` that fails in these ways first."""
    left = list(faults)

    async def wrapped(*args: Any) -> Any:
        if left:
            raise left.pop(0)
        return await call(*args)

    return wrapped


@each_polled
@pytest.mark.parametrize("fault", [Poll.ERROR, Poll.DROP, Poll.RATE_LIMITED])
async def test_the_first_polls_that_fail_after_an_outage_throw_nothing_away(
    house: House, lend: Lend, kind: ChannelKind, fault: Poll
) -> None:
    fake, asked = await away(house, lend, kind, Act(poll=fault, poll_faults=3, retry_after_s=0))
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


@each_polled
@pytest.mark.parametrize("lie", [Poll.HTML, Poll.NOT_FOUND, Poll.WRONG_TYPE])
async def test_a_senseless_poll_after_an_outage_is_asked_again(
    house: House, lend: Lend, kind: ChannelKind, lie: Poll
) -> None:
    _, asked = await away(house, lend, kind, Act(poll=lie, poll_faults=2))
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure


@each_polled
async def test_a_job_that_still_works_past_its_deadline_is_given_up_at_once(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, asked = await away(house, lend, kind, Act(outcome=Outcome.HANG))
    done = await house.end(asked)
    assert done.failure is not None
    assert done.failure.code is ErrorCode.TIMED_OUT
    assert [work.polls for work in fake.works.values()] == [1]


async def test_a_provider_that_stays_away_past_the_deadline_is_given_up(
    house: House, lend: Lend
) -> None:
    fake, asked = await away(house, lend, ChannelKind.REPLICATE, Act(poll=Poll.ERROR))
    done = await house.end(asked)
    assert done.failure is not None
    assert done.failure.code is ErrorCode.TIMED_OUT
    polls = sum(heard.path == f"/v1/predictions/{next(iter(fake.works))}" for heard in fake.heard)
    assert polls >= TROUBLES_MAX
    assert await has_state(house, done, AttemptState.FAILED)


async def test_a_download_that_fails_after_an_outage_is_made_again(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, asked = await away(house, lend, ChannelKind.REPLICATE, Act(poll=Poll.ERROR, poll_faults=1))
    provider = channel_of(house).provider
    failed = [PollTrouble("no network")] * 3
    monkeypatch.setattr(provider, "picture", failing(provider.picture, *failed))
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure


async def test_one_lie_after_many_troubles_is_one_lie(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, spec = lend(ChannelKind.REPLICATE)
    house.channel(spec)
    await house.open()
    provider = channel_of(house).provider
    faults = [*[PollTrouble("HTTP 502")] * 4, PollLie("text/html"), PollTrouble("HTTP 502")]
    monkeypatch.setattr(provider, "poll", failing(provider.poll, *faults))
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure


async def test_troubles_before_a_callback_came_do_not_count_after_it(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.then(Act(submit=Submit.DROP_AFTER, outcome=Outcome.HANG))
    house.channel(spec)
    await house.open()
    provider = channel_of(house).provider
    troubles = [PollTrouble("HTTP 502")] * 1000
    monkeypatch.setattr(provider, "find", failing(provider.find, *troubles))
    asked = await house.ask()

    async def has_trouble() -> bool:
        return any(a.trouble > 1 for a in await house.tries(asked))

    await house.until(has_trouble)
    assert house.upstreams is not None
    (attempt,) = await house.tries(asked)
    await house.upstreams.heard(attempt.id, {"id": next(iter(fake.works))})
    (attempt,) = await house.tries(asked)
    assert (attempt.state, attempt.trouble) == (AttemptState.ACCEPTED, 0)
