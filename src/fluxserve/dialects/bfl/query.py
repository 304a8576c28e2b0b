"""What BFL's queries say: an id, seconds to wait, how many tasks."""

from starlette.requests import Request

from fluxserve.core.errors import InvalidRequest, Problem, Rule

WAIT_MAX_S = 60.0
TASKS_MAX = 100


def no_id() -> InvalidRequest:
    problem = Problem(field="query.id", rule=Rule.REQUIRED, message="Field required")
    return InvalidRequest.of([problem])


def wait_s(request: Request) -> float:
    """`?wait=` in seconds, at most a minute; 0 where nothing was said."""
    text = request.query_params.get("wait")
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not seconds >= 0:
        message = "Input should be a valid number of seconds"
        raise InvalidRequest.of([Problem(field="query.wait", rule=Rule.OTHER, message=message)])
    return min(seconds, WAIT_MAX_S)


def limit(request: Request) -> int:
    text = request.query_params.get("limit", "20")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= TASKS_MAX:
        message = f"Input should be a whole number from 1 to {TASKS_MAX}"
        raise InvalidRequest.of([Problem(field="query.limit", rule=Rule.OTHER, message=message)])
    return int(text)
