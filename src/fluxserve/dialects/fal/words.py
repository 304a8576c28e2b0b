"""fal's words for our predictions: status objects, outputs, the body of webhooks. All pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from fluxserve.core.errors import Failure
from fluxserve.core.ids import to_uuid
from fluxserve.core.ports import EncodedImage
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON
from fluxserve.dialects.fal.errors import ERROR_TYPE, error, failure_of
from fluxserve.dialects.links import Links

NAME = "fal"
IN_QUEUE = "IN_QUEUE"
IN_PROGRESS = "IN_PROGRESS"
COMPLETED = "COMPLETED"


def accepted(prediction: Prediction, short: str, position: int, links: Links) -> dict[str, JSON]:
    """The answer to a submit."""
    return {
        "status": IN_QUEUE,
        **_ids(prediction, short, links),
        "queue_position": position,
        "logs": None,
        "metrics": {},
    }


def status(
    prediction: Prediction, short: str, links: Links, *, position: int, with_logs: bool
) -> dict[str, JSON]:
    """What a poll answers. Clients read `logs` by key, so it is always there."""
    body = _ids(prediction, short, links)
    if prediction.status is PredictionStatus.QUEUED:
        return {"status": IN_QUEUE, **body, "queue_position": position, "logs": None}
    logs: JSON = _logs(prediction) if with_logs else None
    if not prediction.is_terminal:
        return {"status": IN_PROGRESS, **body, "logs": logs}
    body |= {"logs": logs, "metrics": {"inference_time": seconds(prediction)}}
    if failure := failure_of(prediction):
        body |= {"error": failure.message, "error_type": ERROR_TYPE[failure.code]}
    return {"status": COMPLETED, **body}


def output(prediction: Prediction, urls: Sequence[str]) -> dict[str, JSON]:
    """The bare output of a finished prediction; `urls` are those of the pictures to show."""
    images: list[JSON] = [
        {
            "url": url,
            "width": image.blob.width,
            "height": image.blob.height,
            "content_type": image.blob.mime,
            "file_name": f"{prediction.id}_{number}.{image.blob.mime.rpartition('/')[2]}",
            "file_size": image.blob.size_bytes,
        }
        for number, (image, url) in enumerate(zip(prediction.shown, urls, strict=True))
    ]
    return {
        "images": images,
        "timings": {"inference": seconds(prediction)},
        "seed": prediction.request.seed,
        "has_nsfw_concepts": [image.flagged for image in prediction.outputs],
        "prompt": prediction.request.prompt,
    }


def partial(prediction: Prediction, preview: EncodedImage, uri: str) -> dict[str, JSON]:
    """An output on its way: one preview in place of the picture."""
    image: dict[str, JSON] = {
        "url": uri,
        "width": preview.width,
        "height": preview.height,
        "content_type": preview.mime,
    }
    return {
        "images": [image],
        "timings": {},
        "seed": prediction.request.seed,
        "has_nsfw_concepts": [False],
        "prompt": prediction.request.prompt,
    }


def links_of(prediction: Prediction, links: Links) -> list[str]:
    """Links to the pictures to show."""
    every = zip(prediction.outputs, links.outputs(prediction), strict=True)
    return [url for image, url in every if not image.flagged]


def render(prediction: Prediction, links: Links) -> dict[str, JSON]:
    """The body of a webhook."""
    id_ = to_uuid(prediction.id)
    ids: dict[str, JSON] = {"request_id": id_, "gateway_request_id": id_}
    failure = failure_of(prediction) if prediction.is_terminal else None
    if failure is None:
        payload = output(prediction, links_of(prediction, links))
        return {**ids, "status": "OK", "payload": payload, "error": None}
    body = error(failure)[1]
    detail = body["detail"] if isinstance(body, Mapping) else failure.message
    return {**ids, "status": "ERROR", "payload": {"detail": detail}, "error": failure.message}


def broken(failure: Failure) -> JSON:
    """An error inside a stream that has begun."""
    body = error(failure)[1]
    return {"error": body, **body} if isinstance(body, Mapping) else body


def seconds(prediction: Prediction) -> float:
    """Seconds of computing."""
    computed = prediction.metrics.get("predict_s")
    if isinstance(computed, int | float) and not isinstance(computed, bool):
        return round(float(computed), 4)
    if prediction.started_at is None or prediction.finished_at is None:
        return 0.0
    return round((prediction.finished_at - prediction.started_at).total_seconds(), 4)


def _ids(prediction: Prediction, short: str, links: Links) -> dict[str, JSON]:
    id_ = to_uuid(prediction.id)
    base = links.to(f"/queue/{short}/requests/{id_}")
    return {
        "request_id": id_,
        "gateway_request_id": id_,
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
    }


def _logs(prediction: Prediction) -> list[JSON]:
    """One entry a line. When a line was written is not kept: all bear the time of the start."""
    at = _stamp(prediction.started_at or prediction.created_at)
    return [
        {"message": line, "level": "INFO", "source": "USER", "timestamp": at}
        for line in prediction.logs.splitlines()
        if line.strip()
    ]


def _stamp(at: datetime) -> str:
    """ISO 8601 in UTC with microseconds, without a zone."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
