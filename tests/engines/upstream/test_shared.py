"""Several servers on one database: what one is waiting for, no other one takes for lost."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fluxserve.core.attempts import AttemptState
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind, OnUnknown
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act

each_rule = pytest.mark.parametrize("rule", OnUnknown)


@pytest.fixture
async def neighbour(house: House) -> AsyncIterator[House]:
    """Another server on the same database, not started yet."""
    built = replace(house, upstreams=None, desk=None, service=None)
    yield built
    await built.close()


@each_rule
async def test_a_slow_picture_is_not_taken_for_lost_by_another_server(
    house: House, lend: Lend, neighbour: House, rule: OnUnknown
) -> None:
    fake, spec = lend(ChannelKind.OPENAI, on_unknown=rule, submit_timeout_s=60.0)
    fake.script.then(Act(accept_s=2.0))
    house.channel(spec)
    await house.open(is_alone=False)
    asked = await house.ask()
    await house.until(lambda: fake.submissions == 1)
    house.clock.advance(250.0)
    await neighbour.open(is_alone=False)
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1
    assert [a.state for a in await house.tries(done)] == [AttemptState.DONE]


@pytest.mark.parametrize("kind", ChannelKind)
async def test_everybody_who_works_on_a_channel_goes_by_the_same_times(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    _, spec = lend(ChannelKind.OPENAI)
    house.channel(replace(spec, kind=kind))
    await house.open()
    assert house.desk is not None
    (channel,) = house.desk.channels.values()
    assert channel.provider.spec is channel.spec is channel.health.spec  # type: ignore[attr-defined]
