"""A prediction at a provider, from the queue to the stored picture, for every kind."""

import io

import pytest
from PIL import Image

from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import ErrorCode
from fluxserve.core.prediction import PredictionStatus
from fluxserve.core.request import OutputFormat
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Outcome

KINDS = [ChannelKind.REPLICATE, ChannelKind.BFL, ChannelKind.WAVESPEED, ChannelKind.OPENAI]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
async def test_a_prediction_ends_in_a_picture_of_ours(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    blob = done.outputs[0].blob
    assert Image.open(io.BytesIO(await house.blobs.get(blob.key))).size == (64, 64)
    assert fake.submissions == 1
    assert done.served_by.startswith(kind.value)
    assert [a.state for a in await house.tries(done)] == [AttemptState.DONE]


@each_kind
async def test_the_format_asked_for_is_the_format_delivered(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    _, spec = lend(kind)
    house.channel(spec)
    await house.open()
    done = await house.made(output_format=OutputFormat.WEBP)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert done.outputs[0].blob.mime == "image/webp"


@each_kind
async def test_a_failed_job_keeps_the_reason_of_its_provider(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(outcome=Outcome.FAIL, reason="the teapot is short and stout")
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.FAILED
    assert done.failure is not None
    assert "the teapot is short and stout" in done.failure.message
    assert fake.submissions == 1


@each_kind
@pytest.mark.parametrize("outcome", [Outcome.MODERATED_INPUT, Outcome.MODERATED_OUTPUT])
async def test_refused_content_is_called_so(
    house: House, lend: Lend, kind: ChannelKind, outcome: Outcome
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(outcome=outcome)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.failure is not None
    assert done.failure.code in (ErrorCode.INPUT_REFUSED, ErrorCode.OUTPUT_REFUSED)
    assert fake.submissions == 1
