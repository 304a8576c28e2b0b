"""WaveSpeed's envelope: `code` repeats the HTTP status, `data` holds the payload."""

from collections.abc import Mapping

from starlette.responses import Response

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.request import JSON
from fluxserve.dialects.wire import Answer

NO_STORE = {"Cache-Control": "no-store"}

HTTP_STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.BUDGET_EXHAUSTED: 402,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.WRONG_METHOD: 405,
    ErrorCode.CONFLICT: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.QUEUE_FULL: 429,
    ErrorCode.INPUT_UNREACHABLE: 400,
    ErrorCode.INPUT_REFUSED: 400,
    ErrorCode.OUTPUT_REFUSED: 400,
    ErrorCode.OUT_OF_MEMORY: 500,
    ErrorCode.TIMED_OUT: 504,
    ErrorCode.ENGINE_FAILED: 500,
    ErrorCode.UPSTREAM_FAILED: 502,
    ErrorCode.UPSTREAM_UNKNOWN: 502,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}
ERROR_WORD: Mapping[ErrorCode, str] = {
    ErrorCode.INVALID_REQUEST: "invalid_parameter",
    ErrorCode.UNAUTHENTICATED: "unauthorized",
    ErrorCode.BUDGET_EXHAUSTED: "insufficient_balance",
    ErrorCode.UNKNOWN_MODEL: "model_not_found",
    ErrorCode.TOO_LARGE: "file_too_large",
    ErrorCode.RATE_LIMITED: "rate_limit_exceeded",
    ErrorCode.QUEUE_FULL: "rate_limit_exceeded",
    ErrorCode.INPUT_UNREACHABLE: "media_unreachable",
}


def success(data: JSON) -> Response:
    return Answer(envelope(data), headers=NO_STORE)


def envelope(data: JSON) -> dict[str, JSON]:
    return {"code": 200, "message": "success", "data": data}


def error(failure: Failure) -> tuple[int, JSON]:
    status = HTTP_STATUS[failure.code]
    return status, error_body(status, message_of(failure), _word(failure))


def error_body(status: int, message: str, word: str) -> JSON:
    return {"code": status, "message": message, "error_code": word, "error": message}


def _word(failure: Failure) -> str:
    if any(problem.rule is Rule.REQUIRED for problem in failure.problems):
        return "missing_parameter"
    return ERROR_WORD.get(failure.code, failure.code.value)


def message_of(failure: Failure) -> str:
    """Every bad field in one line, or what the failure says."""
    if not failure.problems:
        return failure.message
    return "; ".join(_line(problem) for problem in failure.problems[:10])


def _line(problem: Problem) -> str:
    message = problem.message
    if problem.rule is Rule.REQUIRED and problem.field:
        return f"{problem.field} is required"
    if message.startswith("Must be "):
        message = f"m{message[1:]}"
    if not problem.field or message.startswith(problem.field):
        return message
    is_sentence = message.startswith("must be ")
    return f"{problem.field} {message}" if is_sentence else f"{problem.field}: {message}"
