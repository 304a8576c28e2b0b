"""OpenAI's error object: message, type, param and code, all four always there."""

import uuid
from collections.abc import Mapping

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON

INVALID = "invalid_request_error"
REFUSED = "image_generation_user_error"
SERVER = "server_error"

# HTTP status, `type`, `code`.
WORDS: Mapping[ErrorCode, tuple[int, str, str | None]] = {
    ErrorCode.INVALID_REQUEST: (400, INVALID, "invalid_value"),
    ErrorCode.UNAUTHENTICATED: (401, INVALID, "invalid_api_key"),
    ErrorCode.FORBIDDEN: (403, "permission_error", None),
    ErrorCode.BUDGET_EXHAUSTED: (429, "insufficient_quota", "insufficient_quota"),
    ErrorCode.UNKNOWN_MODEL: (404, INVALID, "model_not_found"),
    ErrorCode.NOT_FOUND: (404, INVALID, None),
    ErrorCode.WRONG_METHOD: (405, INVALID, "method_not_allowed"),
    ErrorCode.CONFLICT: (409, INVALID, "conflict"),
    ErrorCode.TOO_LARGE: (413, INVALID, "file_too_large"),
    ErrorCode.RATE_LIMITED: (429, "rate_limit_exceeded", "rate_limit_exceeded"),
    ErrorCode.QUEUE_FULL: (429, "rate_limit_exceeded", "rate_limit_exceeded"),
    ErrorCode.INPUT_UNREACHABLE: (400, INVALID, "invalid_image_url"),
    ErrorCode.INPUT_REFUSED: (400, REFUSED, "moderation_blocked"),
    ErrorCode.OUTPUT_REFUSED: (400, REFUSED, "moderation_blocked"),
    ErrorCode.OUT_OF_MEMORY: (500, SERVER, "out_of_memory"),
    ErrorCode.TIMED_OUT: (504, SERVER, "timeout"),
    ErrorCode.ENGINE_FAILED: (500, SERVER, "engine_failed"),
    ErrorCode.UPSTREAM_FAILED: (502, SERVER, "upstream_failed"),
    ErrorCode.UPSTREAM_UNKNOWN: (502, SERVER, "upstream_unknown"),
    ErrorCode.UNAVAILABLE: (503, SERVER, None),
    ErrorCode.INTERNAL: (500, SERVER, None),
}
CODE_OF_RULE: Mapping[Rule, str] = {
    Rule.REQUIRED: "missing_required_parameter",
    Rule.UNKNOWN: "unknown_parameter",
    Rule.TYPE: "invalid_type",
    Rule.MIN: "integer_below_min_value",
    Rule.MAX: "integer_above_max_value",
    Rule.MAX_ITEMS: "array_above_max_length",
}
# Clients repeat 409, 429 and 5xx by themselves: told to only where nothing was made yet.
WORTH_A_RETRY = (ErrorCode.RATE_LIMITED, ErrorCode.QUEUE_FULL, ErrorCode.UNAVAILABLE)
SHOWN_MAX = 5  # problems in one message


def error(failure: Failure) -> tuple[int, JSON]:
    """The status and body of a failure."""
    status, type_, code = WORDS[failure.code]
    param: str | None = failure.field or None
    message = failure.message
    if failure.code is ErrorCode.INPUT_UNREACHABLE and param == "loras":
        code = "invalid_value"  # no image is at fault
    if failure.problems:
        first = failure.problems[0]
        param = first.field or None
        code = CODE_OF_RULE.get(first.rule, code)
        lines = dict.fromkeys(_line(problem) for problem in failure.problems)
        message = " ".join(list(lines)[:SHOWN_MAX])
    return status, body_of(message, type_, param, code)


def body_of(message: str, type_: str, param: str | None, code: str | None) -> JSON:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def error_headers(failure: Failure) -> Mapping[str, str]:
    headers = {"x-request-id": str(uuid.uuid4()), "Cache-Control": "no-store"}
    status = WORDS[failure.code][0]
    if (status >= 500 or status in (409, 429)) and failure.code not in WORTH_A_RETRY:
        headers["x-should-retry"] = "false"
    return headers


def failure_of(prediction: Prediction) -> Failure | None:
    """Why a finished prediction has no picture to show; None when it has."""
    match prediction.status:
        case PredictionStatus.FAILED:
            return prediction.failure or Failure(code=ErrorCode.INTERNAL, message="it failed")
        case PredictionStatus.CANCELED:
            return Failure(code=ErrorCode.CONFLICT, message="The request was cancelled.")
        case PredictionStatus.EXPIRED:
            text = "The request was given up: it did not start before its deadline."
            return Failure(code=ErrorCode.TIMED_OUT, message=text)
        case PredictionStatus.SUCCEEDED if prediction.data_removed:
            text = "The pictures of this request are no longer kept."
            return Failure(code=ErrorCode.NOT_FOUND, message=text)
        case PredictionStatus.SUCCEEDED if not prediction.shown:
            text = "The content check kept the pictures back."
            return Failure(code=ErrorCode.OUTPUT_REFUSED, message=text)
        case _:
            return None


def _line(problem: Problem) -> str:
    name, message = problem.field, problem.message.rstrip(".")
    if not name:
        return f"{message}."
    if problem.rule is Rule.REQUIRED and message.endswith("is required"):
        return f"Missing required parameter: '{name}'."
    return f"Invalid value for '{name}': {message[:1].lower()}{message[1:]}."
