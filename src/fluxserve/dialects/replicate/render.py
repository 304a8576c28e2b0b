"""A prediction as Replicate shows it: in answers and as the body of webhooks."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from fluxserve.core.errors import ErrorCode, Failure
from fluxserve.core.ids import to_base32
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON
from fluxserve.dialects.links import Links
from fluxserve.dialects.replicate.inputs import TABLES
from fluxserve.dialects.replicate.tokens import stream_token
from fluxserve.dialects.replicate.words import STATUS, failure_text

NAME = "replicate"
WITHHELD = "the content check kept every picture back; try another prompt"
SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


def render(prediction: Prediction, links: Links) -> dict[str, JSON]:
    """The whole object, as of the prediction that is given."""
    origin, extra = prediction.origin, prediction.origin.extra
    is_removed, failure = prediction.data_removed, failure_of(prediction)
    id_ = to_base32(prediction.id)
    body: dict[str, JSON] = {
        "id": id_,
        "model": model_name(prediction),
        "version": extra.get("version") or "hidden",
        "input": {} if is_removed else tidy({key: origin.said[key] for key in sorted(origin.said)}),
        "logs": "" if is_removed else prediction.logs,
        "output": None if is_removed else output(prediction, links_of(prediction, links)),
        "data_removed": is_removed,
        "error": failure_text(failure) if failure else None,
        "status": status_of(prediction),
        "source": "api",
        "created_at": stamp(prediction.created_at),
    }
    if prediction.started_at is not None:
        body["started_at"] = stamp(prediction.started_at)
    if prediction.finished_at is not None:
        body["completed_at"] = stamp(prediction.finished_at)
        body["metrics"] = metrics(prediction)
    if prediction.deadline_at is not None:
        body["deadline"] = stamp(prediction.deadline_at)
    for name in ("deployment", "webhook", "webhook_events_filter"):
        if extra.get(name) is not None:
            body[name] = extra[name]
    body["urls"] = urls(prediction, id_, links)
    if prediction.served_by:
        body["fluxserve"] = {"served_by": prediction.served_by}
    return body


def status_of(prediction: Prediction) -> str:
    """One of the service's words; failed where every picture was kept back."""
    return STATUS[PredictionStatus.FAILED if failure_of(prediction) else prediction.status]


def links_of(prediction: Prediction, links: Links) -> list[str]:
    """Links to the pictures to show."""
    every = zip(prediction.outputs, links.outputs(prediction), strict=True)
    return [link for image, link in every if not image.flagged]


def failure_of(prediction: Prediction) -> Failure | None:
    """Why there is no picture; None while there may be one, when there is, and when canceled."""
    match prediction.status:
        case PredictionStatus.FAILED:
            return prediction.failure or Failure(code=ErrorCode.INTERNAL, message="it failed")
        case PredictionStatus.SUCCEEDED if prediction.is_withheld:
            return Failure(code=ErrorCode.OUTPUT_REFUSED, message=WITHHELD)
        case _:
            return None


def model_name(prediction: Prediction) -> str:
    """`owner/name`: as the caller spelled it here, the card's own name for other dialects."""
    name = prediction.origin.model_name
    is_ours = prediction.origin.dialect == NAME and name.count("/") == 1
    return name if is_ours else prediction.request.model


def output(prediction: Prediction, shown: Sequence[str]) -> JSON:
    """A string or a list, as users' code for this model expects; None when there is nothing."""
    if prediction.status is not PredictionStatus.SUCCEEDED or not shown:
        return None
    return list(shown) if is_list(prediction) else shown[0]


def is_list(prediction: Prediction) -> bool:
    """Whether the output is a list. Decided when it was made here, else by model and number."""
    said = prediction.origin.extra.get("list_output")
    if isinstance(said, bool) and prediction.origin.dialect == NAME:
        return said
    inputs = TABLES.get(prediction.request.model)
    if inputs is not None and inputs.has_list_output:
        return True
    return prediction.request.num_outputs > 1


def urls(prediction: Prediction, id_: str, links: Links) -> dict[str, JSON]:
    """`stream` stands at the root whatever the mount: the JavaScript client tells files by it."""
    here = links.to(f"/predictions/{id_}")
    return {
        "cancel": f"{here}/cancel",
        "get": here,
        "stream": links.root(f"/v1/files/{stream_token(links.signer, prediction.id)}"),
        "web": links.root(f"/p/{id_}"),
    }


def metrics(prediction: Prediction) -> dict[str, JSON]:
    """Seconds of computing and in all; how many pictures."""
    end = prediction.finished_at
    assert end is not None
    found: dict[str, JSON] = {}
    if count := prediction.shown_count:
        found["image_count"] = count
    if prediction.started_at is not None:
        computed = prediction.metrics.get("predict_s")
        is_known = isinstance(computed, int | float) and not isinstance(computed, bool)
        whole = (end - prediction.started_at).total_seconds()
        seconds = computed if is_known and isinstance(computed, int | float) else whole
        found["predict_time"] = _seconds(float(seconds))
    found["total_time"] = _seconds((end - prediction.created_at).total_seconds())
    return found


def stamp(at: datetime) -> str:
    """ISO 8601 in UTC with microseconds and a Z."""
    at = at if at.tzinfo is UTC else at.astimezone(UTC)
    return f"{at.isoformat(timespec='microseconds')[:26]}Z"


def tidy(value: JSON) -> JSON:
    """Whole numbers without a fraction, as JavaScript prints them: signatures depend on it."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {key: item if type(item) is str else tidy(item) for key, item in value.items()}
    return [tidy(item) for item in value]


def _seconds(value: float) -> JSON:
    """Microseconds at most, and never so small that JSON would write an exponent."""
    value = round(max(value, 0.0), 6)
    if not math.isfinite(value) or value < 0.001:
        return 0
    return tidy(value)
