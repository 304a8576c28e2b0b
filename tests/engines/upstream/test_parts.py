"""Several submissions for one prediction: all at one channel, each once, none in a hurry."""

import asyncio
from dataclasses import replace

from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import ErrorCode
from fluxserve.core.events import EventKind
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind, ChannelState
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.provider import FakeProvider
from tests.fakes.script import Act, Outcome, Submit

BUSY = Act(submit=Submit.RATE_LIMITED, retry_after_s=30)
LONG = {"cool_down_s": 30, "cool_down_max_s": 120}  # a rest that no test waits out


def posts(fake: FakeProvider) -> int:
    return sum(request.method == "POST" for request in fake.heard)


async def refused(house: House, asked: Prediction) -> bool:
    """Whether a part was refused, and the prediction is at work again."""
    is_refused = any(attempt.refused for attempt in await house.tries(asked))
    return is_refused and (await house.store.get(asked.id)).attempt == 2


async def settled() -> None:
    """Room for whatever would spin."""
    for _ in range(200):
        await asyncio.sleep(0)


async def test_parts_never_go_to_another_provider_once_one_is_taken(
    house: House, lend: Lend
) -> None:
    first, first_spec = lend(ChannelKind.BFL)  # a picture a submission
    second, second_spec = lend(ChannelKind.WAVESPEED)  # four
    first.script.then(Act(), Act(submit=Submit.RATE_LIMITED))
    house.channel(first_spec, priority=1)
    house.channel(second_spec)
    await house.open()
    done = await house.made(num_outputs=4, seed=70)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert [output.seed for output in done.outputs] == [70, 71, 72, 73]
    assert (first.submissions, second.submissions) == (4, 0)


async def test_a_refusal_that_waiting_cannot_cure_ends_a_prediction_that_is_begun(
    house: House, lend: Lend
) -> None:
    first, first_spec = lend(ChannelKind.BFL)
    second, second_spec = lend(ChannelKind.WAVESPEED)
    first.script.then(Act(outcome=Outcome.HANG), Act(submit=Submit.NO_CREDIT))
    house.channel(first_spec, priority=1)
    house.channel(second_spec)
    await house.open()
    done = await house.made(num_outputs=2)
    assert done.failure is not None
    assert "credit" in done.failure.message.lower()
    assert (first.submissions, second.submissions) == (1, 0)


async def test_a_missing_part_waits_as_long_as_its_channel_rests(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.BFL, **LONG)
    fake.script.then(Act(), BUSY)
    house.channel(spec)
    await house.open(is_alone=False)
    starts: list[str] = []
    house.bus.hook(
        lambda e: starts.append(e.prediction_id) if e.kind is EventKind.STARTED else None
    )
    asked = await house.ask(num_outputs=2)
    await house.until(lambda: refused(house, asked))
    await settled()
    assert posts(fake) == 2
    assert len(starts) == 2
    house.clock.advance(31)
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert (fake.submissions, len(done.outputs)) == (2, 2)
    assert len(starts) == 2


async def test_after_a_rest_missing_parts_probe_one_by_one(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.BFL, **LONG)
    fake.script.then(*[Act(accept_s=0.3)] * 3)
    fake.script.default = BUSY
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    health = house.desk.channels[spec.name].health
    asked = [await house.ask(num_outputs=2) for _ in range(3)]
    await house.until(lambda: posts(fake) > 3)
    await house.until(lambda: health.state is ChannelState.RESTING)
    for one in asked:
        await house.until(lambda one=one: has_begun(house, one))
    before = posts(fake)
    house.clock.advance(31)
    await house.until(lambda: posts(fake) > before)
    await house.until(lambda: health.state is ChannelState.RESTING)
    await settled()
    assert posts(fake) == before + 1  # the probe was refused: the others wait on
    fake.script.default = Act()
    house.clock.advance(31)
    for one in asked:
        assert (await house.end(one)).status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 6


async def has_begun(house: House, asked: Prediction) -> bool:
    """Whether its first part is at the provider, and no other is under way."""
    tries = await house.tries(asked)
    states = {attempt.state for attempt in tries}
    return bool(tries) and AttemptState.INTENT not in states


async def test_what_stands_behind_a_missing_part_finds_its_way_round_a_rest(
    house: House, lend: Lend
) -> None:
    first, first_spec = lend(ChannelKind.BFL, **LONG)
    second, second_spec = lend(ChannelKind.REPLICATE)
    first.script.then(Act(outcome=Outcome.HANG), BUSY)
    house.channel(first_spec, priority=1)
    house.channel(second_spec)
    await house.open()
    asked = await house.ask(num_outputs=2)
    await house.until(lambda: refused(house, asked))
    behind = await house.ask()
    assert (await house.end(behind)).served_by.startswith(second_spec.name)
    assert (posts(first), second.submissions) == (2, 1)


async def test_a_missing_part_is_given_up_when_patience_is_over(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.BFL, patience_s=60, cool_down_s=100, cool_down_max_s=1000)
    fake.script.then(Act(outcome=Outcome.HANG), replace(BUSY, retry_after_s=500))
    house.channel(spec)
    await house.open()
    asked = await house.ask(num_outputs=2)
    await house.until(lambda: refused(house, asked))
    house.clock.advance(61)
    done = await house.end(asked)
    assert done.failure is not None
    assert done.failure.code is ErrorCode.UPSTREAM_FAILED
    assert posts(fake) == 2


async def test_patience_with_a_missing_part_begins_with_the_first_part(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.BFL, patience_s=60, cool_down_max_s=100)
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    house.desk.channels[spec.name].health.had_trouble("a long rest", rest_s=100)
    fake.script.then(Act(), Act(submit=Submit.RATE_LIMITED))
    asked = await house.ask(num_outputs=2)
    await house.until(lambda: is_waiting(house, asked))
    house.clock.advance(101)  # longer than patience lasts
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 2


async def test_missing_parts_are_asked_for_where_the_others_are(house: House, lend: Lend) -> None:
    first, first_spec = lend(ChannelKind.BFL, **LONG)
    second, second_spec = lend(ChannelKind.WAVESPEED)
    first.script.then(Act(outcome=Outcome.HANG), BUSY)
    house.channel(first_spec, priority=1)
    house.channel(second_spec)
    await house.open()
    asked = await house.ask(num_outputs=2)
    await house.until(lambda: refused(house, asked))
    await house.close()
    first.works[next(iter(first.works))].act = Act()
    channels = house.specs, house.routes
    house.specs, house.routes = house.specs[1:], house.routes[1:]
    await house.open()  # without the first channel, as after a change of the settings
    assert house.desk is not None
    row = await house.store.get(asked.id)
    await house.desk.put_back(row, second_spec.name)
    await house.until(lambda: is_running(house, asked))
    await settled()
    await house.close()
    house.specs, house.routes = channels
    await house.open()  # the change is taken back
    assert house.desk is not None
    await house.desk.put_back(await house.store.get(asked.id))
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert (first.submissions, second.submissions) == (2, 0)


async def is_waiting(house: House, asked: Prediction) -> bool:
    row = await house.store.get(asked.id)
    return row.status is PredictionStatus.QUEUED and row.attempt == 1


async def is_running(house: House, asked: Prediction) -> bool:
    return (await house.store.get(asked.id)).status is PredictionStatus.RUNNING


async def test_parts_that_were_cut_otherwise_are_not_mixed(house: House, lend: Lend) -> None:
    first, first_spec = lend(ChannelKind.BFL, name="reseller", **LONG)
    second, second_spec = lend(ChannelKind.WAVESPEED, name="reseller")
    first.script.then(Act(outcome=Outcome.HANG), BUSY)
    house.channel(first_spec)
    await house.open()
    asked = await house.ask(num_outputs=4)
    await house.until(lambda: refused(house, asked))
    await house.close()
    house.specs = [second_spec]
    await house.open()
    done = await house.end(asked)
    assert done.failure is not None
    assert "parts" in done.failure.message
    assert second.submissions == 0


async def test_a_server_that_stops_puts_back_what_waits_for_a_part(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.BFL, **LONG)
    fake.script.then(Act(), BUSY)
    house.channel(spec)
    await house.open()
    asked = await house.ask(num_outputs=2)
    await house.until(lambda: refused(house, asked))
    began = asyncio.get_running_loop().time()
    await house.close()
    assert asyncio.get_running_loop().time() - began < 5
    assert (await house.store.get(asked.id)).status is PredictionStatus.QUEUED
    states = {attempt.state for attempt in await house.tries(asked)}
    assert states <= {AttemptState.ACCEPTED, AttemptState.FETCHED, AttemptState.VOID}
    house.clock.advance(31)
    await house.open()
    assert (await house.end(asked)).status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 2


async def test_parts_that_a_killed_server_had_not_sent_go_on_at_once(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.BFL, **LONG)
    fake.script.then(Act(outcome=Outcome.HANG), BUSY)
    house.channel(spec)
    await house.open()
    asked = await house.ask(num_outputs=2)
    await house.until(lambda: refused(house, asked))
    await house.crash()
    for work in fake.works.values():
        work.act = Act()
    house.clock.advance(300)  # the rest is over, and no lease of the dead server is
    await house.open()
    done = await house.end(asked)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 2
