"""A wrong LoRA is found out when the job runs; every dialect says that the caller named it."""

import pytest

from fluxserve.core.errors import ErrorCode, Failure
from fluxserve.dialects.bfl.errors import error_word
from fluxserve.dialects.fal import errors as fal
from fluxserve.dialects.openai import errors as openai
from fluxserve.dialects.wavespeed import words as wavespeed

UNKNOWN = Failure(
    code=ErrorCode.INVALID_REQUEST, message="loras: there is no LoRA named 'nope'", field="loras"
)
GONE = Failure(
    code=ErrorCode.INPUT_UNREACHABLE,
    message="loras: files.example answered 404, not 200",
    field="loras",
)


@pytest.mark.parametrize(
    ("failure", "kind"), [(UNKNOWN, "value_error"), (GONE, "file_download_error")]
)
def test_fal_answers_422_located_at_the_loras(failure: Failure, kind: str) -> None:
    status, body = fal.error(failure)
    assert status == 422
    assert isinstance(body, dict)
    assert body["detail"] == [{"loc": ["body", "loras"], "msg": failure.bare, "type": kind}]


@pytest.mark.parametrize("failure", [UNKNOWN, GONE])
def test_openai_answers_400_and_blames_no_image(failure: Failure) -> None:
    status, body = openai.error(failure)
    expected = openai.body_of(failure.message, "invalid_request_error", "loras", "invalid_value")
    assert (status, body) == (400, expected)
    assert "x-should-retry" not in openai.error_headers(failure)


@pytest.mark.parametrize(("failure", "code"), [(UNKNOWN, 1401), (GONE, 1402)])
def test_wavespeeds_task_code_is_one_of_inputs(failure: Failure, code: int) -> None:
    assert wavespeed.task_code(failure) == code
    assert wavespeed.task_error(failure) == failure.message


def test_bfls_details_have_the_word_of_inputs() -> None:
    assert error_word(UNKNOWN.code) == "validation_error"
    assert error_word(GONE.code) == "input_unreachable"
