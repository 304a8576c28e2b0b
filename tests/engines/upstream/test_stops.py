"""A stop waits for paid submissions as long as the settings say, and tells what it cuts off."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from fluxserve.app import House as App
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind
from fluxserve.settings import Settings
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act

CUT = "was cut off"


def cuts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if CUT in r.getMessage()]


async def stopped_in_a_submission(
    house: House, lend: Lend, kind: ChannelKind, *, takes_s: float, drain_s: float
) -> tuple[str, float]:
    """The id of the prediction whose submission takes so long, and how long the stop took."""
    fake, spec = lend(kind, submit_timeout_s=30.0)
    fake.script.then(Act(accept_s=takes_s))
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    house.desk.drain_s = drain_s
    asked = await house.ask()
    await house.until(lambda: fake.submissions == 1)
    began = asyncio.get_running_loop().time()
    await house.close()
    return asked.id, asyncio.get_running_loop().time() - began


@pytest.mark.parametrize(
    ("kind", "fate"),
    [
        (ChannelKind.OPENAI, "its pictures are lost, though paid for: dispatch.drain_s"),
        (ChannelKind.REPLICATE, "it is looked up at the next start"),
    ],
)
async def test_a_stop_cuts_a_submission_off_when_its_time_is_up_and_says_so(
    house: House,
    lend: Lend,
    caplog: pytest.LogCaptureFixture,
    kind: ChannelKind,
    fate: str,
) -> None:
    asked, took_s = await stopped_in_a_submission(house, lend, kind, takes_s=5.0, drain_s=0.3)
    assert 0.2 < took_s < 3.0
    (said,) = cuts(caplog)
    assert asked in said
    assert fate in said
    assert caplog.records[-1].levelno >= logging.WARNING


async def test_a_stop_waits_for_the_picture_that_is_the_answer(
    house: House, lend: Lend, caplog: pytest.LogCaptureFixture
) -> None:
    kind = ChannelKind.OPENAI
    asked, took_s = await stopped_in_a_submission(house, lend, kind, takes_s=1.0, drain_s=30.0)
    assert took_s < 10.0
    assert cuts(caplog) == []
    assert (await house.store.get(asked)).status is PredictionStatus.SUCCEEDED


def test_the_time_that_a_stop_takes_is_a_setting(make_settings: Callable[..., Settings]) -> None:
    built = App(make_settings(dispatch={"drain_s": 7.0}))
    assert built.upstreams._desk.drain_s == 7.0
