"""fal's errors: `detail` as a text or a list of located problems, and a word in a header."""

from collections.abc import Mapping

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON

HTTP_STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 422,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.BUDGET_EXHAUSTED: 403,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.WRONG_METHOD: 405,
    ErrorCode.CONFLICT: 422,  # clients repeat 409
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.QUEUE_FULL: 429,
    ErrorCode.INPUT_UNREACHABLE: 422,
    ErrorCode.INPUT_REFUSED: 422,
    ErrorCode.OUTPUT_REFUSED: 422,
    # Clients repeat 502, 503 and 504: what failed after work was done is a 500.
    ErrorCode.OUT_OF_MEMORY: 500,
    ErrorCode.TIMED_OUT: 504,
    ErrorCode.ENGINE_FAILED: 500,
    ErrorCode.UPSTREAM_FAILED: 500,
    ErrorCode.UPSTREAM_UNKNOWN: 500,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}
ERROR_TYPE: Mapping[ErrorCode, str] = {
    ErrorCode.INVALID_REQUEST: "value_error",
    ErrorCode.UNAUTHENTICATED: "unauthorized",
    ErrorCode.FORBIDDEN: "forbidden",
    ErrorCode.BUDGET_EXHAUSTED: "exhausted_balance",
    ErrorCode.UNKNOWN_MODEL: "not_found",
    ErrorCode.NOT_FOUND: "not_found",
    ErrorCode.WRONG_METHOD: "method_not_allowed",
    ErrorCode.CONFLICT: "conflict",
    ErrorCode.TOO_LARGE: "file_too_large",
    ErrorCode.RATE_LIMITED: "rate_limited",
    ErrorCode.QUEUE_FULL: "rate_limited",
    ErrorCode.INPUT_UNREACHABLE: "file_download_error",
    ErrorCode.INPUT_REFUSED: "content_policy_violation",
    ErrorCode.OUTPUT_REFUSED: "content_policy_violation",
    ErrorCode.OUT_OF_MEMORY: "internal_server_error",
    ErrorCode.TIMED_OUT: "request_timeout",
    ErrorCode.ENGINE_FAILED: "internal_server_error",
    ErrorCode.UPSTREAM_FAILED: "downstream_service_error",
    ErrorCode.UPSTREAM_UNKNOWN: "downstream_service_error",
    ErrorCode.UNAVAILABLE: "downstream_service_unavailable",
    ErrorCode.INTERNAL: "internal_server_error",
}
TYPE_OF_RULE: Mapping[Rule, str] = {
    Rule.REQUIRED: "missing",
    Rule.UNKNOWN: "extra_forbidden",
    Rule.CHOICE: "literal_error",
    Rule.MIN: "greater_than_equal",
    Rule.MAX: "less_than_equal",
    Rule.MAX_ITEMS: "too_long",
}
# The core's names of fields, and fal's.
THEIR_NAMES = {
    "num_steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "width": "image_size",
    "height": "image_size",
    "num_outputs": "num_images",
    "images": "image_url",
    "mask": "mask_url",
    "megapixels": "image_size",
}
LOCATED = (422, 413)
# What is not said in the body.
OUTSIDE = {"fal_webhook": "query", "X-Fal-Request-Timeout": "header", "Idempotency-Key": "header"}
CANCELED = "The request was cancelled"


def error(failure: Failure) -> tuple[int, JSON]:
    """The status and body of a failure. `message` is what some clients read instead of `detail`."""
    status, type_ = HTTP_STATUS[failure.code], ERROR_TYPE[failure.code]
    if failure.problems:
        details: list[JSON] = [_located(problem) for problem in failure.problems]
        message = "; ".join(_line(problem) for problem in failure.problems[:5])
        return status, {"detail": details, "message": message, "error_type": type_}
    message = failure.message
    if status in LOCATED:
        details = [{"loc": _at(failure.field or ""), "msg": failure.bare, "type": type_}]
        return status, {"detail": details, "message": message, "error_type": type_}
    return status, {"detail": message, "message": message, "error_type": type_}


def error_headers(failure: Failure) -> Mapping[str, str]:
    headers = {"x-fal-error-type": ERROR_TYPE[failure.code], "Cache-Control": "no-store"}
    if failure.code is ErrorCode.TIMED_OUT:  # clients do not repeat it then
        headers["X-Fal-Request-Timeout-Type"] = "user"
    return headers


def failure_of(prediction: Prediction) -> Failure | None:
    """Why a finished prediction has no picture to show; None when it has."""
    match prediction.status:
        case PredictionStatus.FAILED:
            return prediction.failure or Failure(code=ErrorCode.INTERNAL, message="it failed")
        case PredictionStatus.CANCELED:
            return Failure(code=ErrorCode.CONFLICT, message=CANCELED)
        case PredictionStatus.EXPIRED:
            text = "Request timed out: it did not start in the time it was given"
            return Failure(code=ErrorCode.TIMED_OUT, message=text)
        case PredictionStatus.SUCCEEDED if prediction.data_removed:
            text = "The output of this request is no longer kept"
            return Failure(code=ErrorCode.NOT_FOUND, message=text)
        case PredictionStatus.SUCCEEDED if not prediction.shown:
            text = "The content could not be processed: the content check kept every picture back"
            return Failure(code=ErrorCode.OUTPUT_REFUSED, message=text)
        case _:
            return None


def _located(problem: Problem) -> JSON:
    message = "field required" if problem.rule is Rule.REQUIRED else problem.message
    return {"loc": _at(problem.field), "msg": message, "type": _type(problem)}


def _at(name: str) -> list[JSON]:
    """Where a field is: the body, query or header, its name, and its place in a list."""
    return [
        OUTSIDE.get(name, "body"),
        *(int(part) if part.isdecimal() else part for part in _parts(name)),
    ]


def _type(problem: Problem) -> str:
    if problem.rule is Rule.TYPE:
        return f"{problem.expected or 'value'}_type"
    return TYPE_OF_RULE.get(problem.rule, "value_error")


def _line(problem: Problem) -> str:
    name = ".".join(_parts(problem.field))
    message = "field required" if problem.rule is Rule.REQUIRED else problem.message
    return f"{name}: {message}" if name else message


def _parts(name: str) -> list[str]:
    return [part for part in _theirs(name).split(".") if part]


def _theirs(name: str) -> str:
    return THEIR_NAMES.get(name, name)
