"""BFL's errors: one body that serves every client, and the one of resellers besides.

`detail` is read by most, `message` by the official package, `error` by agents' samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.request import JSON

# Other words than our own, where clients know one.
ERROR_WORD: Mapping[ErrorCode, str] = {
    ErrorCode.INVALID_REQUEST: "validation_error",
    ErrorCode.UNAUTHENTICATED: "invalid_api_key",
    ErrorCode.BUDGET_EXHAUSTED: "insufficient_credits",
    ErrorCode.RATE_LIMITED: "rate_limit_exceeded",
    ErrorCode.QUEUE_FULL: "rate_limit_exceeded",
    ErrorCode.TIMED_OUT: "generation_timeout",
}
HTTP_STATUS: Mapping[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 422,
    ErrorCode.UNAUTHENTICATED: 403,
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
    ErrorCode.UPSTREAM_FAILED: 503,
    ErrorCode.UPSTREAM_UNKNOWN: 500,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}

NOT_FOUND = "Not Found"  # what an unknown path is, whatever was meant by it


def error(failure: Failure) -> tuple[int, JSON]:
    status = http_status(failure)
    return status, error_body(status, failure)


def gateway_error(failure: Failure) -> tuple[int, JSON]:
    """The same with a reseller's `error` object; a missing or wrong key is 401 there."""
    is_key = failure.code is ErrorCode.UNAUTHENTICATED
    status = 401 if is_key else http_status(failure)
    body = error_body(status, failure)
    message = "Invalid signature" if is_key else body["message"]
    return status, {**body, "error": {"message": message, "type": str(status)}}


def error_word(code: ErrorCode) -> str:
    return ERROR_WORD.get(code, code.value)


def http_status(failure: Failure) -> int:
    if failure.code is ErrorCode.TOO_LARGE and failure.field:
        return 422  # one picture of the body, not the body
    return HTTP_STATUS[failure.code]


def error_body(status: int, failure: Failure) -> dict[str, JSON]:
    """422 has a list, everything else a text; both have a one-line message."""
    word = error_word(failure.code)
    if status != 422:
        detail = NOT_FOUND if failure.code is ErrorCode.UNKNOWN_MODEL else failure.message
        return {"detail": detail, "message": failure.message, "error": word}
    details = [_detail(problem) for problem in _problems(failure)]
    lines = [_line(problem, str(item["msg"])) for problem, item in details]
    return {
        "detail": [item for _, item in details],
        "message": "; ".join(lines),
        "error": "validation_error",
    }


def _problems(failure: Failure) -> list[Problem]:
    if failure.problems:
        return [_worded(problem) for problem in failure.problems]
    return [Problem(field=failure.field or "", rule=Rule.OTHER, message=failure.bare)]


def _worded(problem: Problem) -> Problem:
    """Bounds that are no plain numbers (bytes, pixels) keep the words they came with."""
    is_bound = problem.rule in (Rule.MIN, Rule.MAX)
    if is_bound and not problem.message.startswith("Must be"):
        return replace(problem, rule=Rule.OTHER)
    return problem


def _line(problem: Problem, message: str) -> str:
    name = problem.field.removeprefix("query.")
    return f"{name}: {message}" if name else message


def _detail(problem: Problem) -> tuple[Problem, dict[str, JSON]]:
    kind, message, context = _RULES.get(problem.rule, _other)(problem)
    is_query = problem.field.startswith("query.")
    path = problem.field.split(".") if problem.field else []
    item: dict[str, JSON] = {
        "loc": path if is_query else ["body", *path],
        "msg": message,
        "type": kind,
    }
    if context:
        item["ctx"] = context
    return problem, item


Detail = tuple[str, str, Mapping[str, JSON]]


def _missing(problem: Problem) -> Detail:
    return "missing", "Field required", {}


def _type(problem: Problem) -> Detail:
    match problem.expected, problem.given:
        case "integer", "number":
            words = "Input should be a valid integer, got a number with a fractional part"
            return "int_from_float", words, {}
        case "integer", "string":
            words = "Input should be a valid integer, unable to parse string as an integer"
            return "int_parsing", words, {}
        case "integer", _:
            return "int_type", "Input should be a valid integer", {}
        case "number", "string":
            words = "Input should be a valid number, unable to parse string as a number"
            return "float_parsing", words, {}
        case "number", _:
            return "float_type", "Input should be a valid number", {}
        case "boolean", "string":
            words = "Input should be a valid boolean, unable to interpret input"
            return "bool_parsing", words, {}
        case "boolean", _:
            return "bool_type", "Input should be a valid boolean", {}
        case _:
            return "string_type", "Input should be a valid string", {}


def _minimum(problem: Problem) -> Detail:
    limit = _plain(problem.limit or 0)
    return "greater_than_equal", f"Input should be greater than or equal to {limit}", {"ge": limit}


def _maximum(problem: Problem) -> Detail:
    limit = _plain(problem.limit or 0)
    return "less_than_equal", f"Input should be less than or equal to {limit}", {"le": limit}


def _choice(problem: Problem) -> Detail:
    quoted = [f"'{choice}'" for choice in problem.choices]
    expected = f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    return "enum", f"Input should be {expected}", {"expected": expected}


def _other(problem: Problem) -> Detail:
    if problem.expected == "multiple_of":
        return "multiple_of", problem.message, {"multiple_of": _plain(problem.limit or 1)}
    if problem.expected == "json":
        return "json_invalid", problem.message, {}
    return "value_error", problem.message, {}


def _plain(limit: float) -> int | float:
    return int(limit) if float(limit).is_integer() else limit


_RULES: Mapping[Rule, Callable[[Problem], Detail]] = {
    Rule.REQUIRED: _missing,
    Rule.TYPE: _type,
    Rule.MIN: _minimum,
    Rule.MAX: _maximum,
    Rule.CHOICE: _choice,
}
