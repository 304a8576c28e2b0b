"""BFL's words: six statuses, webhook bodies, errors that every client can read."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fluxserve.core.errors import ErrorCode, Failure, InvalidRequest, Problem, Rule
from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.core.request import BlobRef, ImageRequest, Origin, Task
from fluxserve.dialects.bfl import DIALECT, owns, words
from fluxserve.dialects.bfl.alpha import has_alpha
from fluxserve.dialects.bfl.errors import HTTP_STATUS, error, gateway_error
from fluxserve.dialects.links import Links, Signer

AT = datetime(2026, 5, 4, 10, 30, tzinfo=UTC)
LINKS = Links(base="https://images.example.org", mount="/flux/v1", signer=Signer(b"secret"))
SIX = {
    "Task not found",
    "Pending",
    "Request Moderated",
    "Content Moderated",
    "Ready",
    "Error",
}
REQUEST = ImageRequest(
    model="black-forest-labs/flux-dev",
    task=Task.TEXT_TO_IMAGE,
    prompt="a fox",
    width=1024,
    height=768,
    num_steps=28,
    guidance=3.0,
    seed=7,
)
QUEUED = Prediction(
    id="0" * 31 + "1",
    request=REQUEST,
    origin=Origin(dialect="bfl"),
    engine="simulator",
    created_at=AT,
)


def a_picture(*, flagged: bool = False, mime: str = "image/jpeg") -> OutputImage:
    blob = BlobRef(key="outputs/a/out-0.jpg", mime=mime, size_bytes=9, width=1024, height=768)
    return OutputImage(blob=blob, seed=7, flagged=flagged)


def done(*pictures: OutputImage) -> Prediction:
    started = QUEUED.start(AT + timedelta(seconds=1))
    return started.succeed(pictures, AT + timedelta(seconds=3.5), {})


def failed(code: ErrorCode) -> Prediction:
    return QUEUED.start(AT).fail(Failure(code=code, message="because"), AT)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_end_has_one_of_the_six_statuses_and_a_reason(code: ErrorCode) -> None:
    body = words.polled(failed(code), LINKS)
    assert body["status"] in SIX - {"Ready", "Pending"}
    assert body["result"] is None
    assert body["error"] == "because"
    assert body["details"]


def test_only_a_picture_makes_it_ready() -> None:
    assert words.status_of(QUEUED) == "Pending"
    assert words.status_of(done(a_picture())) == "Ready"
    assert words.status_of(done(a_picture(flagged=True))) == "Content Moderated"
    assert words.status_of(QUEUED.cancel(AT)) == "Error"
    assert words.status_of(QUEUED.expire(AT)) == "Error"
    assert words.status_of(replace(done(a_picture()), outputs=(), data_removed=True)) == "Error"


def test_a_result_has_no_null_and_its_sample_stands_under_the_mount() -> None:
    body = words.polled(done(a_picture()), LINKS)
    result = body["result"]
    assert isinstance(result, dict)
    sample = str(result["sample"])
    assert sample.startswith("https://images.example.org/flux/v1/out/")
    assert sample.endswith("_sample.jpeg")
    assert "?" not in sample
    assert (result["start_time"], result["duration"]) == (AT.timestamp() + 1, 2.5)
    assert None not in result.values()


def test_of_several_pictures_the_first_shown_one_is_the_sample() -> None:
    body = words.polled(done(a_picture(flagged=True), a_picture(), a_picture()), LINKS)
    assert isinstance(body["result"], dict)
    assert len(body["result"]["images"]) == 2


def test_a_webhook_body_serves_both_forms() -> None:
    body = words.render(done(a_picture()), LINKS)
    assert (body["id"], body["task_id"]) == ("00000000-0000-0000-0000-000000000001",) * 2
    assert (body["status"], body["progress"], body["error"]) == ("Ready", 1.0, None)
    assert body["timestamp"] == "2026-05-04T10:30:03Z"
    bad = words.render(failed(ErrorCode.ENGINE_FAILED), LINKS)
    assert (bad["status"], bad["error"], bad["message"]) == ("Error", "engine_failed", "because")
    assert DIALECT.render is words.render


def test_a_webhook_speaks_of_success_where_the_setting_says_so() -> None:
    task = Origin(dialect="bfl", extra={"webhook_status": "task"})
    assert words.render(replace(done(a_picture()), origin=task), LINKS)["status"] == "SUCCESS"
    bad = replace(failed(ErrorCode.INPUT_REFUSED), origin=task)
    assert words.render(bad, LINKS)["status"] == "FAILED"


def test_every_error_code_has_a_status_and_a_body_for_every_client() -> None:
    assert set(HTTP_STATUS) == set(ErrorCode)
    for code in ErrorCode:
        failure = Failure(code=code, message="because", field="prompt")
        status, body = error(failure)
        assert isinstance(body, dict)
        assert isinstance(body["detail"], list if status == 422 else str)
        assert isinstance(body["message"], str)
        assert isinstance(body["error"], str)
        status, body = gateway_error(failure)
        assert isinstance(body, dict)
        assert isinstance(body["error"], dict)
        assert body["error"]["type"] == str(status)


def test_a_reseller_answers_401_for_a_key() -> None:
    failure = Failure(code=ErrorCode.UNAUTHENTICATED, message="Not authenticated")
    assert error(failure)[0] == 403
    status, body = gateway_error(failure)
    assert isinstance(body, dict)
    assert (status, body["error"]) == (401, {"message": "Invalid signature", "type": "401"})


@pytest.mark.parametrize(
    ("problem", "kind", "message"),
    [
        (Problem(field="a", rule=Rule.REQUIRED, message=""), "missing", "Field required"),
        (
            Problem(field="a", rule=Rule.MIN, message="Must be", limit=256),
            "greater_than_equal",
            "Input should be greater than or equal to 256",
        ),
        (
            Problem(field="a", rule=Rule.MAX, message="at most 64 megapixels", limit=64e6),
            "value_error",
            "at most 64 megapixels",
        ),
        (
            Problem(field="a", rule=Rule.CHOICE, message="", choices=("x", "y", "z")),
            "enum",
            "Input should be 'x', 'y' or 'z'",
        ),
        (
            Problem(field="a", rule=Rule.TYPE, message="", expected="number", given="string"),
            "float_parsing",
            "Input should be a valid number, unable to parse string as a number",
        ),
        (
            Problem(field="a", rule=Rule.TYPE, message="", expected="boolean", given="array"),
            "bool_type",
            "Input should be a valid boolean",
        ),
        (
            Problem(field="a", rule=Rule.TYPE, message="", expected="string", given="array"),
            "string_type",
            "Input should be a valid string",
        ),
        (
            Problem(field="a", rule=Rule.TYPE, message="", expected="integer", given="array"),
            "int_type",
            "Input should be a valid integer",
        ),
        (
            Problem(field="a", rule=Rule.TYPE, message="", expected="number", given="null"),
            "float_type",
            "Input should be a valid number",
        ),
    ],
)
def test_a_bad_field_is_worded_as_the_service_words_it(
    problem: Problem, kind: str, message: str
) -> None:
    status, body = error(InvalidRequest.of([problem]).failure())
    assert status == 422
    assert isinstance(body, dict)
    (item,) = body["detail"]
    assert (item["loc"], item["msg"], item["type"]) == (["body", "a"], message, kind)
    assert body["message"] == f"a: {message}"


def test_one_picture_too_large_is_a_bad_field_and_a_body_too_large_is_not() -> None:
    assert error(Failure(code=ErrorCode.TOO_LARGE, message="a", field="input_image"))[0] == 422
    assert error(Failure(code=ErrorCode.TOO_LARGE, message="a"))[0] == 413


def test_unknown_paths_of_the_shared_mount_are_left_to_others() -> None:
    assert owns("/v1/flux-9000")
    assert owns("/flux/v1/anything")
    assert owns("/proxy/bfl/anything")
    assert not owns("/v1/models")
    assert not owns("/v1/images/generations")
    assert not owns("/v1/predictions")


def test_alpha_is_told_from_the_first_bytes() -> None:
    head = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + b"IHDR" + bytes(8) + b"\x08"
    rest = bytes(3) + bytes(4)
    assert has_alpha(head + b"\x06" + rest)
    assert not has_alpha(head + b"\x02" + rest + (9).to_bytes(4) + b"IDAT")
    assert has_alpha(head + b"\x03" + rest + (1).to_bytes(4) + b"tRNS")
    assert not has_alpha(head + b"\x03" + rest + (1).to_bytes(4) + b"gAMA" + bytes(5))
    webp = b"RIFF" + bytes(4) + b"WEBP"
    assert has_alpha(webp + b"VP8X" + bytes(4) + b"\x10" + bytes(8))
    assert not has_alpha(webp + b"VP8X" + bytes(4) + b"\x00" + bytes(8))
    assert has_alpha(webp + b"VP8L" + bytes(4) + b"\x2f" + bytes(3) + b"\x10")
    assert not has_alpha(webp + b"VP8 " + bytes(16))
    assert not has_alpha(b"\xff\xd8\xff" + bytes(40))
    assert not has_alpha(b"")


def test_the_statuses_of_the_core_all_have_a_word() -> None:
    for status in PredictionStatus:
        assert words.status_of(replace(QUEUED, status=status)) in SIX
