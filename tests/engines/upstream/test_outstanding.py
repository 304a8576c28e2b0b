"""Jobs that a provider is working on cost rows, not tasks, and outlive the process."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from fluxserve.core.attempts import AttemptState
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.base import POLLS_PER_S, pause
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act

JOBS = 300


async def test_hundreds_of_open_jobs_are_no_tasks_and_survive_a_crash(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.REPLICATE, concurrency=0, poll_s=0.2, poll_max_s=0.5)
    fake.script.default = Act(work_s=1e9)
    house.channel(spec)
    await house.open()
    idle = len(asyncio.all_tasks())
    asked = [await house.ask() for _ in range(JOBS)]

    async def is_all_accepted() -> bool:
        return (await house.attempts.open_counts()).get(spec.name) == JOBS and not any(
            await house.attempts.page(state=AttemptState.INTENT)
        )

    await house.until(is_all_accepted, 60.0)
    await house.until(lambda: len(asyncio.all_tasks()) <= idle + 64, 10.0)  # a batch of polls
    await house.crash()
    await house.open()
    for work in list(fake.works.values()):
        work.act = replace(work.act, work_s=0.0)
    done = [await house.end(prediction, 60.0) for prediction in asked]
    assert {prediction.status for prediction in done} == {PredictionStatus.SUCCEEDED}
    assert fake.submissions == JOBS


async def test_polls_are_spread_when_very_many_jobs_are_open(house: House, lend: Lend) -> None:
    _, spec = lend(ChannelKind.REPLICATE)
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    channel = house.desk.channels[spec.name]
    channel.health.open = 10_000
    assert pause(channel, 1, 0, lambda: 0.5) == timedelta(seconds=10_000 / POLLS_PER_S)
    channel.health.open = 1
    assert pause(channel, 1, 0, lambda: 0.5) < timedelta(seconds=1)
