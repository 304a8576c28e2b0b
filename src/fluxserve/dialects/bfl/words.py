"""BFL's words for our predictions: statuses, answers, webhook bodies. All pure."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from fluxserve.core.errors import ErrorCode, Failure
from fluxserve.core.ids import to_uuid
from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.core.request import JSON, ImageInput
from fluxserve.dialects.bfl.errors import error_word
from fluxserve.dialects.links import Links

PENDING = "Pending"
READY = "Ready"
ERROR = "Error"
REQUEST_MODERATED = "Request Moderated"
CONTENT_MODERATED = "Content Moderated"
NOT_FOUND = "Task not found"
CREDIT_MICRO = 10_000  # one credit is a cent, in millionths of a USD

MODERATED: Mapping[ErrorCode, str] = {
    ErrorCode.INPUT_REFUSED: REQUEST_MODERATED,
    ErrorCode.OUTPUT_REFUSED: CONTENT_MODERATED,
}
WITHHELD = "The content check kept the picture back"
CANCELED = Failure(code=ErrorCode.CONFLICT, message="The task was cancelled")
EXPIRED = Failure(code=ErrorCode.TIMED_OUT, message="The task did not start before its deadline")


def status_of(prediction: Prediction) -> str:
    """One of the six values that clients know; never another."""
    match prediction.status:
        case PredictionStatus.QUEUED | PredictionStatus.RUNNING:
            return PENDING
        case PredictionStatus.SUCCEEDED if prediction.outputs:
            return READY if picture_of(prediction) else CONTENT_MODERATED
        case PredictionStatus.SUCCEEDED:
            return ERROR  # a webhook that is sent again after the files are gone
        case PredictionStatus.FAILED if prediction.failure:
            return MODERATED.get(prediction.failure.code, ERROR)
        case _:
            return ERROR


def picture_of(prediction: Prediction) -> OutputImage | None:
    """The one picture that BFL shows; None when there is none to show."""
    return next(iter(prediction.shown), None)


def failure_of(prediction: Prediction) -> Failure:
    """Why an unsuccessful prediction ended."""
    if prediction.failure:
        return prediction.failure
    if prediction.status is PredictionStatus.CANCELED:
        return CANCELED
    if prediction.status is PredictionStatus.EXPIRED:
        return EXPIRED
    if prediction.outputs:
        return Failure(code=ErrorCode.OUTPUT_REFUSED, message=WITHHELD)
    return Failure(code=ErrorCode.NOT_FOUND, message="The files of this task have expired")


def accepted(
    prediction: Prediction, links: Links, cost_micro: int | None = None
) -> dict[str, JSON]:
    """The answer to a submit: the published one with and without webhook, united."""
    request = prediction.request
    body: dict[str, JSON] = {
        "id": to_uuid(prediction.id),
        "polling_url": links.to(f"/get_result?id={to_uuid(prediction.id)}"),
        "cost": None if cost_micro is None else cost_micro / CREDIT_MICRO,
        "input_mp": _input_megapixels(request.images),
        "output_mp": _megapixels(request.width * request.height) or None,
    }
    if prediction.origin.webhook:
        body["status"] = PENDING
        body["webhook_url"] = prediction.origin.webhook.url
    return body


def polled(prediction: Prediction, links: Links) -> dict[str, JSON]:
    """The answer to a poll. `result` is null until the picture is ready."""
    status = status_of(prediction)
    body: dict[str, JSON] = {
        "id": to_uuid(prediction.id),
        "status": status,
        "result": _result(prediction, links) if status == READY else None,
        "progress": round(prediction.progress, 4) if status == PENDING else None,
        "details": None,
        "preview": None,
    }
    if status not in (PENDING, READY):
        failure = failure_of(prediction)
        body["details"] = _details(status, prediction)
        body["error"] = failure.message
    return body


def render(prediction: Prediction, links: Links) -> dict[str, JSON]:
    """The webhook body: both forms that receivers of BFL's webhooks know, in one."""
    body = polled(prediction, links)
    status = status_of(prediction)
    is_ready = status == READY
    failure = None if is_ready else failure_of(prediction)
    if prediction.origin.extra.get("webhook_status") == "task":
        body["status"] = "SUCCESS" if is_ready else "FAILED"
    at = prediction.finished_at or prediction.created_at
    return {
        **body,
        "task_id": body["id"],
        "progress": 1.0 if is_ready else None,
        "error": _word(prediction) if failure else None,
        "message": failure.message if failure else None,
        "timestamp": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def unknown_task(id_: str) -> dict[str, JSON]:
    """The body for an id that nobody knows, or no longer: a task's shape and an error's."""
    return {
        "id": id_[:200],
        "status": NOT_FOUND,
        "result": None,
        "progress": None,
        "details": None,
        "preview": None,
        "detail": NOT_FOUND,
        "message": NOT_FOUND,
    }


def _result(prediction: Prediction, links: Links) -> JSON:
    image = picture_of(prediction)
    assert image is not None
    extension = image.blob.mime.rpartition("/")[2]
    name = f"{prediction.id}_sample.{extension}"
    links = replace(links, base=links.to(""))  # files stand under the caller's mount too
    shown: dict[str, JSON] = {
        "sample": links.blob(image.blob, name, prediction.finished_at),
        "prompt": prediction.request.prompt,
        "seed": image.seed,
    }
    shown |= _times(prediction.started_at or prediction.created_at, prediction.finished_at)
    if image.blob.width and image.blob.height:
        shown |= {"width": image.blob.width, "height": image.blob.height}
    shown["content_type"] = image.blob.mime
    if len(others := prediction.shown) > 1:  # made in a dialect that has several
        since = prediction.finished_at
        shown["images"] = [
            links.blob(other.blob, f"{prediction.id}_{number}_sample.{extension}", since)
            for number, other in enumerate(others)
        ]
    return shown


def _times(start: datetime, end: datetime | None) -> dict[str, JSON]:
    """Unix seconds; what is not known is left out, because clients refuse null."""
    if end is None:
        return {"start_time": start.timestamp()}
    duration = round((end - start).total_seconds(), 6)
    return {
        "start_time": start.timestamp(),
        "end_time": end.timestamp(),
        "duration": max(0.0, duration),
    }


def _details(status: str, prediction: Prediction) -> JSON:
    failure = failure_of(prediction)
    if status in (REQUEST_MODERATED, CONTENT_MODERATED):
        return {"Moderation Reasons": [failure.message]}
    return {"error": _word(prediction), "message": failure.message}


def _word(prediction: Prediction) -> str:
    if prediction.status is PredictionStatus.CANCELED:
        return "cancelled"
    return error_word(failure_of(prediction).code)


def _megapixels(pixels: int) -> float:
    return round(pixels / 1e6, 2)


def _input_megapixels(images: tuple[ImageInput, ...]) -> float | None:
    """Millions of pixels of the pictures given; None while one of them is not fetched."""
    blobs = [image.blob for image in images]
    if any(blob is None or not blob.width for blob in blobs):
        return None
    return _megapixels(sum(blob.width * blob.height for blob in blobs if blob))
