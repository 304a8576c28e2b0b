"""Answers that cannot be true end in a clear failure, and never in a second submission."""

import logging

import pytest

from fluxserve.core.attempts import AttemptState
from fluxserve.core.errors import ErrorCode, NotFound
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Output, Poll, Submit

POLLED = [ChannelKind.REPLICATE, ChannelKind.BFL, ChannelKind.WAVESPEED]
LIES = [Poll.WRONG_ID, Poll.HTML, Poll.WRONG_TYPE, Poll.NOT_FOUND, Poll.STRANGE]


@pytest.mark.parametrize("kind", POLLED)
@pytest.mark.parametrize("lie", LIES)
async def test_polls_that_lie_for_good_fail_the_prediction(
    house: House, lend: Lend, kind: ChannelKind, lie: Poll
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(poll=lie)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.failure is not None
    assert done.failure.code is ErrorCode.UPSTREAM_FAILED
    assert fake.submissions == 1


@pytest.mark.parametrize("kind", POLLED)
@pytest.mark.parametrize("fault", [*LIES, Poll.ERROR, Poll.DROP, Poll.RATE_LIMITED])
async def test_a_poll_that_fails_once_is_asked_again(
    house: House, lend: Lend, kind: ChannelKind, fault: Poll
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(poll=fault, poll_faults=1)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


@pytest.mark.parametrize("kind", POLLED)
async def test_an_endless_poll_is_cut_off(
    house: House, lend: Lend, kind: ChannelKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxserve.engines.upstream.wire.JSON_MAX_BYTES", 1_000_000)
    fake, spec = lend(kind)
    fake.script.default = Act(poll=Poll.ENDLESS)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.failure is not None
    assert "larger than" in done.failure.message


@pytest.mark.parametrize("kind", [*POLLED, ChannelKind.OPENAI])
@pytest.mark.parametrize(
    ("output", "words"),
    [
        (Output.TEXT, "no usable picture"),
        (Output.FOREIGN, "not a public address"),
        (Output.FILE_URL, "no web address"),
        (Output.NOTHING, "without"),
        (Output.NOT_FOUND, "404"),
        (Output.REDIRECT, "not a public address"),
        (Output.ENDLESS, "larger than"),
    ],
)
async def test_an_output_that_is_none_fails_the_prediction(
    house: House, lend: Lend, kind: ChannelKind, output: Output, words: str
) -> None:
    if (kind, output) == (ChannelKind.OPENAI, Output.NOTHING):
        words = "not known"  # an empty answer of a kind that tells nothing else
    fake, spec = lend(kind, output_max_bytes=1_000_000)
    fake.script.default = Act(output=output)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.FAILED
    assert done.failure is not None
    assert words in done.failure.message
    assert fake.submissions == 1


@pytest.mark.parametrize("kind", POLLED)
async def test_a_download_that_breaks_once_is_made_again(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(output=Output.ONCE_DROP)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


@pytest.mark.parametrize("kind", [ChannelKind.REPLICATE, ChannelKind.WAVESPEED])
async def test_pictures_may_come_as_data_uris(house: House, lend: Lend, kind: ChannelKind) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(output=Output.DATA_URI)
    house.channel(spec)
    await house.open()
    assert (await house.made()).status is PredictionStatus.SUCCEEDED


@pytest.mark.parametrize("kind", [ChannelKind.BFL, ChannelKind.WAVESPEED])
async def test_a_poll_link_to_another_host_is_not_followed(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    stranger, _ = lend(kind, name="stranger")
    fake, spec = lend(kind)
    fake.script.default = Act(poll_origin="http://192.0.2.1:1")
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert stranger.heard == []


@pytest.mark.parametrize("kind", POLLED)
async def test_the_key_is_not_sent_with_downloads(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind)
    house.channel(spec)
    await house.open()
    await house.made()
    downloads = [heard for heard in fake.heard if heard.path.startswith("/out/")]
    assert downloads
    for heard in downloads:
        assert fake.key not in str(heard.headers)


@pytest.mark.parametrize("kind", POLLED)
async def test_an_endless_answer_to_a_submission_is_cut_off_and_looked_up(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind, output_max_bytes=500_000, reconcile_grace_s=0.2)
    fake.script.then(Act(submit=Submit.ENDLESS))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.is_terminal
    assert fake.submissions <= 1


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says to an operator."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", POLLED)
@pytest.mark.parametrize("lie", LIES)
async def test_a_poll_that_lies_is_logged_once(
    house: House, lend: Lend, caplog: pytest.LogCaptureFixture, kind: ChannelKind, lie: Poll
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(poll=lie)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert len(said(caplog)) == 1, said(caplog)
    assert done.id in said(caplog)[0]
    assert [a.state for a in await house.tries(done)] == [AttemptState.FAILED]


@pytest.mark.parametrize("kind", POLLED)
@pytest.mark.parametrize("fault", [Poll.ERROR, Poll.DROP, Poll.RATE_LIMITED])
async def test_a_poll_that_gets_no_answer_is_logged_once(
    house: House, lend: Lend, caplog: pytest.LogCaptureFixture, kind: ChannelKind, fault: Poll
) -> None:
    fake, spec = lend(kind)
    fake.script.default = Act(poll=fault, poll_faults=3, retry_after_s=0)
    house.channel(spec)
    await house.open()
    assert (await house.made()).status is PredictionStatus.SUCCEEDED
    assert len(said(caplog)) == 1, said(caplog)


@pytest.mark.parametrize("kind", [*POLLED, ChannelKind.OPENAI])
@pytest.mark.parametrize("output", [Output.TEXT, Output.FOREIGN, Output.REDIRECT, Output.ENDLESS])
async def test_an_output_that_is_none_is_logged_once(
    house: House, lend: Lend, caplog: pytest.LogCaptureFixture, kind: ChannelKind, output: Output
) -> None:
    fake, spec = lend(kind, output_max_bytes=200_000)
    fake.script.default = Act(output=output)
    house.channel(spec)
    await house.open()
    await house.made()
    assert len(said(caplog)) == 1, said(caplog)


@pytest.mark.parametrize("kind", [*POLLED, ChannelKind.OPENAI])
@pytest.mark.parametrize(
    "fault",
    [Submit.HTML_AFTER, Submit.WRONG_TYPE, Submit.NO_ID, Submit.ENDLESS, Submit.ERROR_INSIDE],
)
async def test_a_submission_answered_with_a_lie_is_logged_once(
    house: House,
    lend: Lend,
    caplog: pytest.LogCaptureFixture,
    kind: ChannelKind,
    fault: Submit,
) -> None:
    fake, spec = lend(kind, output_max_bytes=100_000, reconcile_grace_s=0.2)
    fake.script.then(Act(submit=fault))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.is_terminal
    assert len(said(caplog)) == 1, said(caplog)


@pytest.mark.parametrize("kind", [*POLLED, ChannelKind.OPENAI])
@pytest.mark.parametrize(
    "fault",
    [
        Submit.WRONG_KEY,
        Submit.NO_CREDIT,
        Submit.UNKNOWN_MODEL,
        Submit.RATE_LIMITED,
        Submit.REDIRECT,
    ],
)
async def test_a_refusal_is_logged_once_and_another_channel_serves(
    house: House, lend: Lend, caplog: pytest.LogCaptureFixture, kind: ChannelKind, fault: Submit
) -> None:
    first, spec = lend(kind, name="first")
    _, other = lend(ChannelKind.REPLICATE, name="second")
    first.script.default = Act(submit=fault)
    house.channel(spec, priority=1)
    house.channel(other)
    await house.open()
    assert (await house.made()).served_by.startswith("second")
    assert len(said(caplog)) == 1, said(caplog)
    assert "first" in said(caplog)[0]


async def test_a_prediction_deleted_while_its_picture_comes_leaves_the_bill(
    house: House, lend: Lend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, spec = lend(ChannelKind.REPLICATE)
    house.channel(spec)
    await house.open()
    assert house.service is not None
    assert house.desk is not None
    provider, service = house.desk.channels[spec.name].provider, house.service
    asked: list[str] = []
    download = provider.picture

    async def picture(url: str) -> bytes:
        await service.delete(asked[0])
        return await download(url)

    monkeypatch.setattr(provider, "picture", picture)
    prediction = await house.ask()
    asked.append(prediction.id)

    async def is_over() -> bool:
        return [a.state for a in await house.tries(prediction)] == [AttemptState.DONE]

    await house.until(is_over)
    with pytest.raises(NotFound):
        await house.store.get(prediction.id)
    assert said(caplog) == []
