"""The grace period begins when the answer was lost, however long the submission took until then."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.attempts import AttemptState
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind
from fluxserve.engines.upstream.resolving import LOOKED
from tests.engines.upstream.conftest import FAKES, House, Lend
from tests.engines.upstream.test_chain import channel_to
from tests.fakes.fluxserve import FakeFluxserve
from tests.fakes.provider import FakeProvider
from tests.fakes.script import Act, Submit
from tests.fakes.server import serving

LISTING = [ChannelKind.REPLICATE, ChannelKind.WAVESPEED]
each_listing = pytest.mark.parametrize("kind", LISTING)


def is_unknown(house: House, prediction: Prediction) -> Callable[[], Any]:
    async def look() -> bool:
        return [a.state for a in await house.tries(prediction)] == [AttemptState.UNKNOWN]

    return look


def has_looked(house: House, prediction: Prediction) -> Callable[[], Any]:
    async def look() -> bool:
        return any(LOOKED in a.facts for a in await house.tries(prediction))

    return look


def looks(fake: FakeProvider) -> int:
    return sum(heard.path.endswith("/predictions") for heard in fake.heard[1:])


@each_listing
async def test_a_provider_that_is_slower_than_our_patience_is_not_given_the_job_twice(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch, kind: ChannelKind
) -> None:
    fake_kind: Any = FAKES[kind]
    submit = fake_kind.submit
    is_first = iter([True])

    async def slowly(fake: FakeProvider, request: Request, **said: Any) -> Response:
        if next(is_first, False):
            await asyncio.sleep(1.0)  # the job exists only then
        answer: Response = await submit(fake, request, **said)
        return answer

    monkeypatch.setattr(fake_kind, "submit", slowly)
    # The submission is given up after 0.6 s, later than the grace period from its beginning.
    fake, spec = lend(kind, submit_timeout_s=0.3, connect_timeout_s=0.3, reconcile_grace_s=0.6)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1
    assert [a.state for a in await house.tries(done)] == [AttemptState.DONE]


@each_listing
async def test_a_server_that_was_away_looks_for_a_whole_grace_period_before_it_submits_again(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind, reconcile_grace_s=60.0)
    fake.script.then(Act(submit=Submit.DROP_BEFORE))
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(has_looked(house, asked))
    await house.crash()
    before = looks(fake)
    house.clock.advance(50.0)
    await house.open()
    await house.until(lambda: looks(fake) > before)
    assert fake.submissions == 0
    await house.crash()
    house.clock.advance(61.0)
    await house.open()
    assert (await house.end(asked)).status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 1


async def test_a_callback_is_waited_for_as_long_after_a_slow_submission_as_after_a_quick_one(
    house: House, lend: Lend
) -> None:
    house.callback_base = "http://127.0.0.1:9/callbacks/"  # delivered by hand below
    limits = {"submit_timeout_s": 0.3, "connect_timeout_s": 0.3}
    fake, spec = lend(ChannelKind.BFL, reconcile_grace_s=0.5, **limits)
    fake.script.then(Act(accept_s=5.0))
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(is_unknown(house, asked))
    (attempt,) = await house.tries(asked)
    assert house.upstreams is not None
    await house.upstreams.heard(attempt.id, {"id": next(iter(fake.works))})
    assert (await house.end(asked)).status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 1


@each_listing
async def test_nothing_proves_that_a_submission_of_days_ago_never_happened(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind)
    fake.script.then(Act(submit=Submit.DROP_BEFORE))  # or it was, and is listed no longer
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(has_looked(house, asked))
    await house.crash()
    house.clock.advance(2 * 86_400.0)
    await house.open()
    done = await house.end(asked)
    assert done.failure is not None
    assert "not known" in done.failure.message
    assert fake.submissions == 0


async def test_a_server_of_ours_is_not_sent_a_submission_of_days_ago_once_more(
    house: House, stack: ExitStack, tmp_path: Path
) -> None:
    fake = FakeFluxserve(data_dir=tmp_path)
    origin = stack.enter_context(serving(fake.app(), lifespan="on"))
    fake.script.default = Act(submit=Submit.DROP_BEFORE)
    house.channel(channel_to(origin))
    await house.open()
    asked = await house.ask()
    await house.until(is_unknown(house, asked))
    await house.crash()
    fake.script.default = Act()  # and it has forgotten the name of the first
    house.clock.advance(2 * 86_400.0)
    await house.open()
    done = await house.end(asked)
    assert done.failure is not None
    assert "not known" in done.failure.message
    assert fake.predictions(origin) == []
