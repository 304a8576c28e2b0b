"""One server of ours behind another: chains are exact, whatever is lost on the way."""

import io
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import ErrorCode
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind, ChannelSpec
from tests.engines.upstream.conftest import KONTEXT, House
from tests.fakes.fluxserve import FakeFluxserve
from tests.fakes.script import Act, Submit
from tests.fakes.server import serving


@pytest.fixture
def behind(tmp_path: Path, stack: ExitStack) -> tuple[FakeFluxserve, str]:
    fake = FakeFluxserve(data_dir=tmp_path)
    return fake, stack.enter_context(serving(fake.app(), lifespan="on"))


def channel_to(origin: str) -> ChannelSpec:
    return ChannelSpec(
        name="behind",
        kind=ChannelKind.FLUXSERVE,
        base_url=origin,
        key="",
        models={"*": KONTEXT},
        poll_s=0.02,
        poll_max_s=0.1,
        submit_timeout_s=5.0,
        cool_down_s=0.05,
    )


async def test_a_server_of_ours_serves_another(
    house: House, behind: tuple[FakeFluxserve, str]
) -> None:
    fake, origin = behind
    house.channel(channel_to(origin))
    await house.open()
    out = io.BytesIO()
    Image.new("RGB", (320, 256), "red").save(out, "PNG")
    picture = await house.intake.take(out.getvalue(), "image")
    done = await house.made(images=(picture,), num_outputs=2, seed=5)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert [output.seed for output in done.outputs] == [5, 6]
    (theirs,) = fake.predictions(origin)
    assert theirs["request"]["seed"] == 5
    assert theirs["request"]["num_outputs"] == 2


@pytest.mark.parametrize("fault", [Submit.DROP_BEFORE, Submit.DROP_AFTER])
async def test_a_lost_answer_in_a_chain_is_resolved_at_once_and_exactly(
    house: House, behind: tuple[FakeFluxserve, str], fault: Submit
) -> None:
    fake, origin = behind
    fake.script.then(Act(submit=fault))
    house.channel(channel_to(origin))
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert [a.state for a in await house.tries(done)] == [AttemptState.DONE]
    assert len(fake.predictions(origin)) == 1


async def test_a_failure_in_a_chain_keeps_its_code_and_its_words(
    house: House, behind: tuple[FakeFluxserve, str]
) -> None:
    _, origin = behind
    house.channel(channel_to(origin))
    await house.open()
    done = await house.made('a fox [[outcome=fail error="out of foxes"]]')
    assert done.failure is not None
    assert done.failure.message == "behind: out of foxes"
    assert done.failure.code is ErrorCode.ENGINE_FAILED
