"""Replicate's words for our statuses and errors, and the shape of its problem answers."""

import math
from collections.abc import Mapping

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.prediction import PredictionStatus
from fluxserve.core.request import JSON

STATUS: Mapping[PredictionStatus, str] = {
    PredictionStatus.QUEUED: "starting",
    PredictionStatus.RUNNING: "processing",
    PredictionStatus.SUCCEEDED: "succeeded",
    PredictionStatus.FAILED: "failed",
    PredictionStatus.CANCELED: "canceled",
    PredictionStatus.EXPIRED: "canceled",  # `aborted` makes the official clients poll for ever
}
HTTP_STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 422,
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
    ErrorCode.INPUT_UNREACHABLE: 422,
    ErrorCode.INPUT_REFUSED: 422,
    ErrorCode.OUTPUT_REFUSED: 422,
    ErrorCode.OUT_OF_MEMORY: 500,
    ErrorCode.TIMED_OUT: 500,
    ErrorCode.ENGINE_FAILED: 500,
    ErrorCode.UPSTREAM_FAILED: 502,
    ErrorCode.UPSTREAM_UNKNOWN: 502,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}
TITLE: Mapping[int, str] = {
    400: "Bad Request",
    401: "Unauthenticated",
    402: "Insufficient credit",
    403: "Permission denied",
    405: "Method not allowed",
    409: "Conflict",
    413: "Request entity too large",
    500: "Internal server error",
    502: "Bad gateway",
    503: "Service unavailable",
}
VALIDATION_TITLE = "Input validation failed"
VERSION_TITLE = "Invalid version or not permitted"
VERSION_DETAIL = (
    "The specified version does not exist (or perhaps you don't have permission to use it?)"
)
NOT_FOUND = "The requested resource could not be found."
NO_TOKEN = "You did not pass an authentication token"
BAD_TOKEN = "You did not pass a valid authentication token"
PROBLEM_TYPE = "application/problem+json"
# The vocabulary of the JSON Schema library that the service uses.
RULE_TYPE: Mapping[Rule, str] = {
    Rule.REQUIRED: "required",
    Rule.UNKNOWN: "additional_property_not_allowed",
    Rule.TYPE: "invalid_type",
    Rule.CHOICE: "enum",
    Rule.MIN: "number_gte",
    Rule.MAX: "number_lte",
    Rule.MAX_ITEMS: "array_max_items",
    Rule.FORMAT: "format",
    Rule.OTHER: "invalid_value",
}
# Marks at the end of a prediction's error text that users' code looks for.
MARK: Mapping[ErrorCode, str] = {
    ErrorCode.INPUT_REFUSED: "(E005)",
    ErrorCode.OUTPUT_REFUSED: "(E005)",
    ErrorCode.OUT_OF_MEMORY: "(E1001)",
    ErrorCode.INTERNAL: "(E1000)",
}
RETRY_DEFAULT_S = 5


def error(failure: Failure) -> tuple[int, JSON]:
    """A failure as status and problem body."""
    code = failure.code
    status = HTTP_STATUS[code]
    if code in (ErrorCode.NOT_FOUND, ErrorCode.UNKNOWN_MODEL):
        if failure.field == "version":
            return 422, problem(422, VERSION_DETAIL, title=VERSION_TITLE)
        return status, problem(status, NOT_FOUND)
    if status == 429:
        return status, _throttled(failure)
    if code is ErrorCode.INVALID_REQUEST and _is_unreadable(failure):
        return 400, problem(400, failure.message)
    if status == 422:
        return status, _invalid(failure)
    detail = failure.message
    if code is ErrorCode.UNAUTHENTICATED and detail not in (NO_TOKEN, BAD_TOKEN):
        detail = NO_TOKEN
    return status, problem(status, detail)


def error_headers(failure: Failure) -> Mapping[str, str]:
    if HTTP_STATUS[failure.code] != 429:
        return {"Content-Type": PROBLEM_TYPE}
    return {"Content-Type": PROBLEM_TYPE, "Retry-After": str(retry_s(failure))}


def create_headers(failure: Failure) -> Mapping[str, str]:
    """The same where a prediction may exist already: never repeat such a request by itself."""
    no_repeat = HTTP_STATUS[failure.code] >= 500 or failure.code is ErrorCode.CONFLICT
    return {**error_headers(failure), **({"x-should-retry": "false"} if no_repeat else {})}


def problem(status: int, detail: str, *, title: str | None = None) -> dict[str, JSON]:
    """A problem body; 404 and 429 have no title."""
    body: dict[str, JSON] = {"detail": detail, "status": status}
    name = title or TITLE.get(status)
    if name:
        body["title"] = name
    return body


def failure_text(failure: Failure) -> str:
    """The `error` of a failed prediction: one string."""
    text = failure.message
    if failure.code is ErrorCode.OUTPUT_REFUSED and "NSFW" not in text:
        text = f"NSFW content detected: {text}"
    mark = MARK.get(failure.code)
    return f"{text} {mark}" if mark and mark not in text else text


def _is_unreadable(failure: Failure) -> bool:
    """The body as a whole is no JSON object, as opposed to one that breaks the schema."""
    return any(
        not found.field and found.rule is Rule.FORMAT and found.expected == "json"
        for found in failure.problems
    )


def _throttled(failure: Failure) -> JSON:
    seconds = retry_s(failure)
    text = f"Request was throttled. Your rate limit resets in ~{seconds}s."
    if failure.code is ErrorCode.QUEUE_FULL:
        text = f"Request was throttled. The queue is full; try again in ~{seconds}s."
    return {"detail": text, "status": 429, "retry_after": seconds}


def retry_s(failure: Failure) -> int:
    return max(1, math.ceil(failure.retry_after_s or RETRY_DEFAULT_S))


def _invalid(failure: Failure) -> JSON:
    found = failure.problems or (
        Problem(field=failure.field or "", rule=Rule.OTHER, message=failure.bare),
    )
    lines = [f"- {one.field}: {one.message}" if one.field else f"- {one.message}" for one in found]
    return {
        "detail": "".join(f"{line}\n" for line in lines),
        "status": 422,
        "title": VALIDATION_TITLE,
        "invalid_fields": [
            {"type": RULE_TYPE[one.rule], "field": one.field, "description": one.message}
            for one in found
        ],
    }
