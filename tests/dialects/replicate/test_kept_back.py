"""Pictures that a content check kept back are nowhere to be had in Replicate's words."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.core.request import BlobRef, ImageRequest, Origin, Task
from fluxserve.dialects.links import Links, Signer
from fluxserve.dialects.replicate.events import endings
from fluxserve.dialects.replicate.predictions import data_uris
from fluxserve.dialects.replicate.render import links_of, render
from tests.dialects.served import house_on

AT = datetime(2026, 5, 4, 10, 30, tzinfo=UTC)
LINKS = Links(base="https://images.example.org", mount="/v1", signer=Signer(b"secret"))
QUEUED = Prediction(
    id="0" * 31 + "1",
    request=ImageRequest(
        model="black-forest-labs/flux-schnell",
        task=Task.TEXT_TO_IMAGE,
        prompt="a fox",
        width=1024,
        height=768,
        num_steps=4,
        guidance=3.0,
        seed=7,
    ),
    origin=Origin(dialect="wavespeed"),
    engine="simulator",
    created_at=AT,
)


def done(*flags: bool) -> Prediction:
    """A finished prediction with a picture for each flag."""
    pictures = tuple(
        OutputImage(
            blob=BlobRef(key=f"outputs/a/out-{n}.jpg", mime="image/jpeg", size_bytes=9),
            seed=7 + n,
            flagged=flag,
        )
        for n, flag in enumerate(flags)
    )
    return QUEUED.start(AT).succeed(pictures, AT + timedelta(seconds=2), {})


def test_a_run_without_a_picture_to_show_failed_for_its_content() -> None:
    shown = render(done(True, True), LINKS)
    assert shown["status"] == "failed"
    assert shown["output"] is None
    assert "NSFW content" in str(shown["error"])
    assert str(shown["error"]).endswith("(E005)")
    assert isinstance(shown["metrics"], dict)
    assert "image_count" not in shown["metrics"]


def test_the_pictures_that_passed_are_shown_without_the_others() -> None:
    some, whole = done(False, True, False), done(False, False, False)
    shown, links = render(some, LINKS), LINKS.outputs(whole)
    assert (shown["status"], shown["error"]) == ("succeeded", None)
    assert shown["output"] == [links[0], links[2]]
    assert isinstance(shown["metrics"], dict)
    assert shown["metrics"]["image_count"] == 2


@pytest.mark.parametrize("flags", [(True, True), (False, True), (False, False)])
def test_what_a_run_came_to_stays_when_its_pictures_go(flags: tuple[bool, ...]) -> None:
    """A run that failed may not have succeeded later on."""
    before, after = (render(run, LINKS) for run in (done(*flags), done(*flags).strip()))
    assert after["data_removed"] is True
    for name in ("status", "error", "metrics"):
        assert after[name] == before[name]
    assert (after["output"], after["input"], after["logs"]) == (None, {}, "")


def test_a_stream_of_a_run_without_a_picture_ends_in_an_error() -> None:
    every = done(True)
    events = endings(every, links_of(every, LINKS), "")
    assert [event.event for event in events] == ["error", "done"]
    assert "NSFW content" in str(events[0].data)
    some = done(True, False)
    assert [event.event for event in endings(some, links_of(some, LINKS), "")] == ["output", "done"]


def test_a_failure_that_nobody_explained_is_still_told_in_words() -> None:
    failed = replace(QUEUED, status=PredictionStatus.FAILED, finished_at=AT)
    shown = render(failed, LINKS)
    assert shown["status"] == "failed"
    assert isinstance(shown["error"], str)


async def test_inline_outputs_leave_them_out_too(tmp_path: Path) -> None:
    async with house_on(tmp_path) as house:
        for n in range(2):
            key = f"outputs/a/out-{n}.jpg"
            await house.services.blobs.put(key, f"picture {n}".encode(), "image/jpeg")
        assert len(await data_uris(house.services, done(False, False))) == 2
        assert len(await data_uris(house.services, done(False, True))) == 1
