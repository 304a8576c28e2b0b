"""WaveSpeed's words for our predictions: statuses, task codes, the prediction object. All pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from fluxserve.core.errors import ErrorCode, Failure, Rule
from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.core.request import JSON
from fluxserve.dialects.links import Links

CREATED = "created"
PROCESSING = "processing"
COMPLETED = "completed"
FAILED = "failed"
DELETED = "deleted"  # a word of the service; here such a task is no longer known

# Older clients stop on completed and failed only, so every other end is `failed` with its reason.
STATUS: Mapping[PredictionStatus, str] = {
    PredictionStatus.QUEUED: CREATED,
    PredictionStatus.RUNNING: PROCESSING,
    PredictionStatus.SUCCEEDED: COMPLETED,
    PredictionStatus.FAILED: FAILED,
    PredictionStatus.CANCELED: FAILED,
    PredictionStatus.EXPIRED: FAILED,
}
# What a list may be narrowed to; the last three are never answered.
STATUSES_OF: Mapping[str, tuple[PredictionStatus, ...]] = {
    CREATED: (PredictionStatus.QUEUED,),
    PROCESSING: (PredictionStatus.RUNNING,),
    COMPLETED: (PredictionStatus.SUCCEEDED,),
    FAILED: (PredictionStatus.FAILED, PredictionStatus.CANCELED, PredictionStatus.EXPIRED),
    "pending": (PredictionStatus.QUEUED,),
    "cancelled": (PredictionStatus.CANCELED,),
    "timeout": (PredictionStatus.EXPIRED,),
}
MODERATED = 1200
MISSING = 1400
INVALID = 1401
UNREACHABLE = 1402
TASK_FAILED = 1403
INTERNAL = 5000
UNAVAILABLE = 5003
SYNC_TIMEOUT = 5004  # of a wait only: clients take it for a task that still runs

TASK_CODE: Mapping[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: INVALID,
    ErrorCode.UNAUTHENTICATED: TASK_FAILED,
    ErrorCode.FORBIDDEN: TASK_FAILED,
    ErrorCode.BUDGET_EXHAUSTED: TASK_FAILED,
    ErrorCode.UNKNOWN_MODEL: TASK_FAILED,
    ErrorCode.NOT_FOUND: TASK_FAILED,
    ErrorCode.WRONG_METHOD: TASK_FAILED,
    ErrorCode.CONFLICT: TASK_FAILED,
    ErrorCode.TOO_LARGE: INVALID,
    ErrorCode.RATE_LIMITED: UNAVAILABLE,
    ErrorCode.QUEUE_FULL: UNAVAILABLE,
    ErrorCode.INPUT_UNREACHABLE: UNREACHABLE,
    ErrorCode.INPUT_REFUSED: MODERATED,
    ErrorCode.OUTPUT_REFUSED: MODERATED,
    ErrorCode.OUT_OF_MEMORY: TASK_FAILED,
    ErrorCode.TIMED_OUT: TASK_FAILED,
    ErrorCode.ENGINE_FAILED: TASK_FAILED,
    ErrorCode.UPSTREAM_FAILED: TASK_FAILED,
    ErrorCode.UPSTREAM_UNKNOWN: TASK_FAILED,
    ErrorCode.UNAVAILABLE: UNAVAILABLE,
    ErrorCode.INTERNAL: INTERNAL,
}
# Ends that a new attempt may cure. Clients that may submit again look for "HTTP 5" or "HTTP 429".
CURABLE: Mapping[ErrorCode, str] = {
    ErrorCode.RATE_LIMITED: "HTTP 429",
    ErrorCode.QUEUE_FULL: "HTTP 429",
    ErrorCode.UNAVAILABLE: "HTTP 503",
}
_UPSTREAM_TROUBLE = re.compile(r"\b(?:http|status|code|answered)[ :]+(429|5\d\d)\b", re.IGNORECASE)
# Words that make a client try again, and how the same is said without them.
_TRIGGERS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"http (?=5)", re.IGNORECASE), "status "),
    (re.compile(r"timeout", re.IGNORECASE), "time limit"),
    (re.compile(r"connection", re.IGNORECASE), "network link"),
    (re.compile(r"4(?=29)"), "4 "),
)


def render(prediction: Prediction, links: Links) -> dict[str, JSON]:
    """The prediction object, as in every answer, and bare in webhooks."""
    shown = pictures_of(prediction)
    failure = failure_of(prediction)
    path = f"/predictions/{prediction.id}"
    inference_ms = _milliseconds(prediction.started_at, prediction.finished_at)
    return {
        "id": prediction.id,
        "model": prediction.origin.model_name or prediction.request.model,
        "input": dict(prediction.origin.said),
        "outputs": [links.blob(image.blob, name, prediction.finished_at) for name, image in shown],
        "urls": {"get": links.to(f"{path}/result"), "cancel": links.to(f"{path}/cancel")},
        "has_nsfw_contents": [image.flagged for image in prediction.outputs],
        "status": FAILED if failure else STATUS[prediction.status],
        "created_at": stamp(prediction.created_at),
        "error": task_error(failure) if failure else _withheld(prediction),
        "code": task_code(failure) if failure else 0,
        "executionTime": _milliseconds(prediction.created_at, prediction.finished_at),
        "timings": {"inference": inference_ms},
        "progress": round(prediction.progress, 4),
        "seed": prediction.request.seed,  # what is used, whatever was asked
    }


def pictures_of(prediction: Prediction) -> list[tuple[str, OutputImage]]:
    """The pictures to show with the names of their files; those kept back are left out."""
    return [
        (f"{prediction.id}_{number}.{image.blob.mime.rpartition('/')[2]}", image)
        for number, image in enumerate(prediction.outputs)
        if not image.flagged
    ]


def still_running(shown: Mapping[str, JSON], seconds: float) -> dict[str, JSON]:
    """The object as sync mode answers it when the task takes longer than the wait."""
    text = f"Sync mode timed out after {seconds:g} seconds; the task is still running"
    return {**shown, "status": PROCESSING, "error": text, "code": SYNC_TIMEOUT}


def failure_of(prediction: Prediction) -> Failure | None:
    """Why there is no picture; None while there may be one and when there is."""
    match prediction.status:
        case PredictionStatus.FAILED:
            return prediction.failure or Failure(code=ErrorCode.INTERNAL, message="it failed")
        case PredictionStatus.CANCELED:
            return Failure(code=ErrorCode.CONFLICT, message="The task was cancelled")
        case PredictionStatus.EXPIRED:
            text = "The task was given up: it did not start before its deadline"
            return Failure(code=ErrorCode.TIMED_OUT, message=text)
        case PredictionStatus.SUCCEEDED if prediction.data_removed:
            return Failure(code=ErrorCode.NOT_FOUND, message="The outputs have expired")
        case PredictionStatus.SUCCEEDED if not prediction.shown:
            text = "The content check kept every picture back"
            return Failure(code=ErrorCode.OUTPUT_REFUSED, message=text)
        case _:
            return None


def task_code(failure: Failure) -> int:
    is_missing = any(problem.rule is Rule.REQUIRED for problem in failure.problems)
    return MISSING if is_missing else TASK_CODE[failure.code]


def task_error(failure: Failure) -> str:
    """The text of a failure. It makes clients try again only where that may help."""
    if word := _cure(failure):
        return f"{word}: {failure.message}"
    text = failure.message
    for pattern, words in _TRIGGERS:
        text = pattern.sub(words, text)
    return text


def _cure(failure: Failure) -> str:
    """The HTTP status that says: try again; empty where it would not help."""
    if failure.code is ErrorCode.UPSTREAM_FAILED:
        status = _UPSTREAM_TROUBLE.search(failure.message)
        return f"HTTP {status[1]} from upstream" if status else ""
    return CURABLE.get(failure.code, "")


def _withheld(prediction: Prediction) -> str:
    count = sum(image.flagged for image in prediction.outputs)
    if not count:
        return ""
    return f"The content check kept {count} of {len(prediction.outputs)} pictures back"


def stamp(at: datetime) -> str:
    """ISO 8601 with milliseconds, in UTC."""
    at = at if at.tzinfo is UTC else at.astimezone(UTC)
    return f"{at.isoformat(timespec='milliseconds')[:23]}Z"


def _milliseconds(start: datetime | None, end: datetime | None) -> int:
    if start is None or end is None:
        return 0
    return max(0, round((end - start).total_seconds() * 1000))
