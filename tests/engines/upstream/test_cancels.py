"""A provider hears of every cancel, since what it does not hear of is made, and billed."""

import pytest

from fluxserve.core.attempts import AttemptState
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.engines.upstream.answers import PollLie, PollTrouble, Ticket
from fluxserve.engines.upstream.cancelling import CANCELS_MAX
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Outcome


class Cancels:
    """Cancels of the only channel that fail in these ways first."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch, *faults: Exception) -> None:
        assert house.desk is not None
        (channel,) = house.desk.channels.values()
        self.count = 0
        self._faults = list(faults)
        self._cancel = channel.provider.cancel
        monkeypatch.setattr(channel.provider, "cancel", self.cancel)

    async def cancel(self, ticket: Ticket) -> bool:
        self.count += 1
        if self._faults:
            raise self._faults.pop(0)
        return await self._cancel(ticket)


async def canceled(house: House) -> Prediction:
    """Wait for the submission, turn away, and wait for the end of the provider's work."""
    assert house.service is not None
    asked = await house.ask()

    async def is_accepted() -> bool:
        return [a.state for a in await house.tries(asked)] == [AttemptState.ACCEPTED]

    await house.until(is_accepted)
    done = await house.service.cancel(asked.id)
    assert done.status is PredictionStatus.CANCELED

    async def is_over() -> bool:
        return not any(a.state.is_open for a in await house.tries(asked))

    await house.until(is_over)
    return done


@pytest.mark.parametrize("failures", [1, 4])
async def test_a_cancel_that_did_not_arrive_is_sent_again(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    await house.open()
    cancels = Cancels(house, monkeypatch, *[PollTrouble("HTTP 429")] * failures)
    done = await canceled(house)
    assert cancels.count == failures + 1
    assert [work.canceled for work in fake.works.values()] == [True]
    assert [a.state for a in await house.tries(done)] == [AttemptState.CANCELED]


@pytest.mark.parametrize("fault", [None, PollLie("an answer larger than 16 MiB")])
async def test_a_cancel_that_was_heard_is_not_sent_again(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    fake, spec = lend(ChannelKind.BFL)  # which knows no cancel
    fake.script.default = Act(pending_polls=4)
    house.channel(spec)
    await house.open()
    cancels = Cancels(house, monkeypatch, *([fault] if fault else []))
    done = await canceled(house)
    assert cancels.count == 1
    assert [a.state for a in await house.tries(done)] == [AttemptState.DONE]  # and billed


async def test_a_provider_that_never_hears_of_a_cancel_is_followed_to_the_bill(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.default = Act(pending_polls=4)
    house.channel(spec)
    await house.open()
    cancels = Cancels(house, monkeypatch, *[PollTrouble("HTTP 503")] * 1000)
    done = await canceled(house)
    assert cancels.count > 1
    assert [a.state for a in await house.tries(done)] == [AttemptState.DONE]


async def test_a_provider_that_cannot_be_told_of_a_cancel_is_left_alone_in_the_end(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    house.channel(spec)
    fake.script.default = Act(work_s=3.0)
    await house.open()
    cancels = Cancels(house, monkeypatch, *[PollTrouble("HTTP 500")] * 1000)
    await canceled(house)
    assert cancels.count <= CANCELS_MAX
