"""A look-up that comes to nothing, for whatever reason, is made again up to the deadline."""

import pytest

from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import Conflict, ErrorCode, Failure, FluxserveError, InputUnreachable
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.answers import (
    Accepted,
    Declared,
    Lookup,
    Lost,
    PollLie,
    PollTrouble,
    Taken,
)
from fluxserve.engines.upstream.channel import ChannelKind
from fluxserve.engines.upstream.resolving import TROUBLES_MAX
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Submit

FAULTS = [
    PollTrouble("HTTP 503"),
    PollLie("the provider answered text/html instead of JSON"),
    Declared(Failure(code=ErrorCode.UPSTREAM_FAILED, message="upstream exploded")),
    InputUnreachable("the picture is gone"),
    FluxserveError("something of ours"),
]
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)


class Looks:
    """Look-ups that fail `times` times, and are real afterwards."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch, *faults: Exception) -> None:
        assert house.desk is not None
        (channel,) = house.desk.channels.values()
        self.faults = list(faults)
        self.count = 0
        self._find = channel.provider.find
        monkeypatch.setattr(channel.provider, "find", self.find)

    async def find(self, lost: Lost, taken: Taken) -> Accepted | Lookup:
        self.count += 1
        if self.faults:
            raise self.faults.pop()
        return await self._find(lost, taken)


@each_fault
async def test_a_look_up_that_fails_is_made_again(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.then(Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    looks = Looks(house, monkeypatch, *[fault] * 3)
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert (looks.count, fake.submissions) == (4, 1)


@each_fault
async def test_look_ups_that_fail_for_good_are_given_up_at_the_deadline(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.then(Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    looks = Looks(house, monkeypatch, *[fault] * 1000)
    asked = await house.ask()
    await house.until(lambda: looks.count >= 2)
    house.clock.advance(spec.deadline_s)
    done = await house.end(asked)
    assert done.failure is not None
    assert done.failure.code is ErrorCode.UPSTREAM_UNKNOWN
    assert [a.state for a in await house.tries(done)] == [AttemptState.UNKNOWN]
    assert fake.submissions == 1


async def test_the_first_look_up_that_fails_after_an_outage_is_not_the_last(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.then(Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    looks = Looks(house, monkeypatch, *[PollTrouble("no network")] * 1000)
    asked = await house.ask()
    await house.until(lambda: looks.count >= 2)
    await house.crash()
    house.clock.advance(2 * spec.deadline_s)
    await house.open()
    again = Looks(house, monkeypatch, *[PollTrouble("no network")] * 3)
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert again.count == 4 < TROUBLES_MAX
    assert fake.submissions == 1


async def test_a_look_up_that_somebody_else_overtook_changes_nothing(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.then(Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    looks = Looks(house, monkeypatch, Conflict("it moved"))
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert (looks.count, fake.submissions) == (2, 1)
