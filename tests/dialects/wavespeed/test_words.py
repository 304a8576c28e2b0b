"""WaveSpeed's words: statuses, codes, and texts that invite a new attempt only if it helps."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.core.request import JSON, BlobRef, ImageRequest, Origin, Task
from fluxserve.dialects.links import Links, Signer, safe_name
from fluxserve.dialects.wavespeed import DIALECT, owns, words
from fluxserve.dialects.wavespeed.errors import HTTP_STATUS, error
from fluxserve.dialects.wavespeed.files import mime_of

AT = datetime(2026, 5, 4, 10, 30, 0, 123456, tzinfo=UTC)
LINKS = Links(base="https://images.example.org", mount="/api/v3", signer=Signer(b"secret"))
REQUEST = ImageRequest(
    model="black-forest-labs/flux-dev",
    task=Task.TEXT_TO_IMAGE,
    prompt="a fox",
    width=256,
    height=256,
    num_steps=28,
    guidance=3.5,
    seed=7,
    num_outputs=2,
)
QUEUED = Prediction(
    id="0" * 31 + "1",
    request=REQUEST,
    origin=Origin(dialect="wavespeed"),
    engine="simulator",
    created_at=AT,
)


def done(*flags: bool) -> Prediction:
    blob = BlobRef(key="outputs/a/out-0.jpg", mime="image/jpeg", size_bytes=9)
    pictures = tuple(OutputImage(blob=blob, seed=7, flagged=flag) for flag in flags)
    return QUEUED.start(AT + timedelta(seconds=1)).succeed(pictures, AT + timedelta(seconds=3), {})


def shown(prediction: Prediction) -> dict[str, JSON]:
    return words.render(prediction, LINKS)


def test_times_are_milliseconds_and_stamps_have_them() -> None:
    body = shown(done(False))
    assert (body["executionTime"], body["timings"]) == (3000, {"inference": 2000})
    assert body["created_at"] == "2026-05-04T10:30:00.123Z"
    assert DIALECT.render is words.render


def test_a_picture_kept_back_is_told_and_not_shown() -> None:
    body = shown(done(False, True))
    assert isinstance(body["outputs"], list)
    assert (len(body["outputs"]), body["has_nsfw_contents"]) == (1, [False, True])
    assert (body["status"], body["error"]) == (
        "completed",
        "The content check kept 1 of 2 pictures back",
    )
    body = shown(done(True, True))
    assert (body["status"], body["code"], body["outputs"]) == ("failed", 1200, [])


def test_every_other_end_is_failed_with_a_reason() -> None:
    stripped = replace(done(False), outputs=(), data_removed=True)
    broken = replace(QUEUED, status=PredictionStatus.FAILED)
    for end in (QUEUED.cancel(AT), QUEUED.expire(AT), stripped, broken):
        body = shown(end)
        assert body["status"] == "failed"
        assert body["error"]
        assert body["code"] not in (0, 5004)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_has_a_status_and_a_task_code(code: ErrorCode) -> None:
    failure = Failure(code=code, message="because")
    status, body = error(failure)
    assert isinstance(body, dict)
    assert (body["code"], status) == (HTTP_STATUS[code], HTTP_STATUS[code])
    assert words.task_code(failure) in (1200, 1401, 1402, 1403, 5000, 5003)


def test_a_missing_field_has_its_own_code() -> None:
    problem = Problem(field="prompt", rule=Rule.REQUIRED, message="")
    failure = Failure(code=ErrorCode.INVALID_REQUEST, message="", problems=(problem,))
    assert words.task_code(failure) == 1400


@pytest.mark.parametrize(
    ("code", "message", "text"),
    [
        (ErrorCode.UNAVAILABLE, "resting", "HTTP 503: resting"),
        (ErrorCode.RATE_LIMITED, "slow down", "HTTP 429: slow down"),
        (
            ErrorCode.UPSTREAM_FAILED,
            "acme answered 502",
            "HTTP 502 from upstream: acme answered 502",
        ),
        (ErrorCode.UPSTREAM_FAILED, "acme: width 512 is odd", "acme: width 512 is odd"),
        (ErrorCode.UPSTREAM_UNKNOWN, "Connection lost", "network link lost"),
        (ErrorCode.ENGINE_FAILED, "http 500, Timeout, 429", "status 500, time limit, 4 29"),
    ],
)
def test_a_failure_invites_a_new_attempt_only_where_it_may_help(
    code: ErrorCode, message: str, text: str
) -> None:
    assert words.task_error(Failure(code=code, message=message)) == text


def test_file_names_can_stand_in_a_path() -> None:
    assert safe_name("../../a b/ph\u00f6to (1).png") == "ph_to_1_.png"
    assert safe_name("C:\\x\\y.jpg") == "y.jpg"
    assert safe_name("...") == safe_name("") == "upload"
    assert safe_name("\u7167\u7247.png") == safe_name(".png") == "upload.png"
    assert safe_name("a.tar.\u00fcgz") == "a.tar.gz"
    assert len(safe_name("x" * 500 + ".png")) <= 100
    assert safe_name("x" * 500 + ".png").endswith(".png")


def test_an_upload_is_never_served_as_something_that_runs() -> None:
    assert mime_of(b"\x89PNG\r\n\x1a\n") == "image/png"
    assert mime_of(b"RIFF\x00\x00\x00\x00WEBPVP8 ") == "image/webp"
    assert mime_of(b"<html><script>") == mime_of(b"<svg/>") == "application/octet-stream"


def test_only_its_own_paths_are_owned() -> None:
    assert owns("/api/v3/x")
    assert owns("/api/v2")
    assert not owns("/api/v30/x")
    assert not owns("/v1/x")
