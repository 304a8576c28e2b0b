"""The native words: fields of a request, the shape of a prediction, the shape of an error."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from fluxserve.core.catalog import ModelCard
from fluxserve.core.errors import ErrorCode, Failure, InvalidRequest, Problem, Rule
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import (
    JSON,
    Approximation,
    ImageInput,
    ImageParams,
    ImageRequest,
    LoraRef,
    Margins,
    OutputFormat,
    WebhookSpec,
)
from fluxserve.core.schema import Field, Kind, check
from fluxserve.core.service import Outlook
from fluxserve.core.sizes import parse_size
from fluxserve.dialects.links import Links

DEADLINE_MAX_S = 366 * 86400.0
FIELDS = (
    Field(name="model", kind=Kind.STRING, required=True, description="any public model name"),
    Field(name="prompt", kind=Kind.STRING, description="what to make, or how to edit"),
    Field(name="negative_prompt", kind=Kind.STRING, description="what to keep away from"),
    Field(
        name="images",
        kind=Kind.ARRAY,
        items=Kind.URI,
        max_items=8,
        description="input pictures: URLs, data URIs, base64 or links from POST /files",
    ),
    Field(name="mask", kind=Kind.STRING, description="a picture; white is repainted"),
    Field(name="size", kind=Kind.STRING, description="WIDTHxHEIGHT in px"),
    Field(name="width", kind=Kind.INTEGER, description="px"),
    Field(name="height", kind=Kind.INTEGER, description="px"),
    Field(name="aspect_ratio", kind=Kind.STRING, description="such as 16:9, or match_input_image"),
    Field(name="megapixels", kind=Kind.NUMBER, min=0.01, max=16, description="area of the result"),
    Field(name="num_steps", kind=Kind.INTEGER, description="denoising steps"),
    Field(name="guidance", kind=Kind.NUMBER, description="guidance scale"),
    Field(name="strength", kind=Kind.NUMBER, description="image to image: 1 repaints everything"),
    Field(name="seed", kind=Kind.INTEGER, description="drawn when absent or negative"),
    Field(name="num_outputs", kind=Kind.INTEGER, description="pictures; output i uses seed + i"),
    Field(name="output_format", kind=Kind.STRING, choices=("png", "jpeg", "webp")),
    Field(name="output_quality", kind=Kind.INTEGER, description="0 to 100, jpeg and webp"),
    Field(name="margins", kind=Kind.OBJECT, description="top, bottom, left, right in px"),
    Field(name="loras", kind=Kind.ARRAY, items=Kind.OBJECT, description="path and scale each"),
    Field(
        name="go_fast",
        kind=Kind.BOOLEAN,
        description="allow the approximations that the server names in its settings",
    ),
    Field(
        name="approximate",
        kind=Kind.ARRAY,
        items=Kind.STRING,
        choices=tuple(Approximation),
        description="allow these approximations, whatever go_fast says; []: compute everything",
    ),
    Field(name="prompt_upsampling", kind=Kind.BOOLEAN),
    Field(name="safety_check", kind=Kind.BOOLEAN),
    Field(name="preview_steps", kind=Kind.INTEGER, min=0, description="0: no previews"),
    Field(name="priority", kind=Kind.INTEGER, min=-10, max=10, description="higher goes first"),
    Field(
        name="deadline_s",
        kind=Kind.NUMBER,
        min=0.1,
        max=DEADLINE_MAX_S,
        description="seconds until it is pointless",
    ),
    Field(name="webhook", kind=Kind.STRING, description="URL that is told when it is done"),
    Field(
        name="webhook_events",
        kind=Kind.ARRAY,
        items=Kind.STRING,
        description="of start, output, logs, completed",
    ),
)
# Fields that the core knows by the same name, and takes as the schema left them.
AS_SAID = (
    *("prompt", "negative_prompt", "width", "height", "aspect_ratio", "megapixels", "num_steps"),
    *("guidance", "strength", "seed", "num_outputs", "output_quality", "go_fast"),
    *("prompt_upsampling", "safety_check", "preview_steps"),
)
EVENTS = ("start", "output", "logs", "completed")
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
    ErrorCode.TIMED_OUT: 504,
    ErrorCode.ENGINE_FAILED: 500,
    ErrorCode.UPSTREAM_FAILED: 502,
    ErrorCode.UPSTREAM_UNKNOWN: 502,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}


def read_values(body: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """The known fields of a body; InvalidRequest naming every field that is wrong."""
    checked = check(FIELDS, body, unknown=False)
    if checked.problems:
        raise InvalidRequest.of(checked.problems)
    return checked.values


def to_params(
    values: Mapping[str, JSON], images: tuple[ImageInput, ...], mask: ImageInput | None
) -> ImageParams:
    """Checked values as the core's words."""
    size = _text(values, "size")
    parsed = parse_size(size) if size else None
    if size and parsed is None:
        raise InvalidRequest("WIDTHxHEIGHT in px, such as 1024x768", field="size")
    fmt = _text(values, "output_format")
    said: dict[str, Any] = {
        name: value for name in AS_SAID if (value := values.get(name)) is not None
    }
    if parsed:
        said |= {"width": parsed.width, "height": parsed.height}
    return ImageParams(
        model=_text(values, "model") or "",
        images=images,
        mask=mask,
        output_format=OutputFormat(fmt) if fmt else None,
        margins=_margins(values.get("margins")),
        loras=_loras(values.get("loras")),
        approximate=_approximations(values.get("approximate")),
        **said,
    )


def in_said_words(values: Mapping[str, JSON], error: InvalidRequest) -> InvalidRequest:
    """The same problems where the caller spelled them: a side, when `size` was said, is its."""
    is_size = bool(_text(values, "size"))

    def told(problem: Problem) -> Problem:
        if not is_size or problem.field not in ("width", "height"):
            return problem
        is_bound = problem.rule in (Rule.MIN, Rule.MAX)
        text = f"{problem.field}: {problem.message}" if is_bound else problem.message
        return replace(problem, field="size", message=text)

    return error.retold(told)


def to_webhook(values: Mapping[str, JSON]) -> WebhookSpec | None:
    url = _text(values, "webhook")
    if not url:
        return None
    if not url.lower().startswith(("http://", "https://")):
        raise InvalidRequest("an http or https URL", field="webhook")
    asked = values.get("webhook_events") or ["completed"]
    events = tuple(str(item) for item in asked) if isinstance(asked, list) else ()
    if any(event not in EVENTS for event in events):
        raise InvalidRequest(f"any of {', '.join(EVENTS)}", field="webhook_events")
    return WebhookSpec(url=url, events=events)


def render(prediction: Prediction, links: Links) -> dict[str, JSON]:
    """A prediction in our own words; the body of webhooks too."""
    me = links.to(f"/predictions/{prediction.id}")
    outputs: list[JSON] = [
        {
            "url": url,
            "width": image.blob.width,
            "height": image.blob.height,
            "mime": image.blob.mime,
            "size_bytes": image.blob.size_bytes,
            "seed": image.seed,
            "flagged": image.flagged,
        }
        for image, url in zip(prediction.outputs, links.outputs(prediction), strict=True)
    ]
    return {
        "id": prediction.id,
        "status": prediction.status,
        "model": prediction.request.model,
        "dialect": prediction.origin.dialect,
        "request": _request(prediction.request),
        "outputs": outputs,
        "error": None if prediction.failure is None else _failure(prediction.failure),
        "progress": round(prediction.progress, 4),
        "logs": prediction.logs,
        "metrics": dict(prediction.metrics),
        "engine": prediction.engine,
        "served_by": prediction.served_by,
        "attempt": prediction.attempt,
        "priority": prediction.priority,
        "created_at": _time(prediction.created_at),
        "started_at": _time(prediction.started_at),
        "finished_at": _time(prediction.finished_at),
        "deadline_at": _time(prediction.deadline_at),
        "data_removed": prediction.data_removed,
        "urls": {"get": me, "cancel": f"{me}/cancel", "events": f"{me}/events"},
    }


def render_live(prediction: Prediction, outlook: Outlook, links: Links) -> dict[str, JSON]:
    """The same with when it may be done."""
    return {**render(prediction, links), **render_outlook(outlook)}


def render_outlook(outlook: Outlook) -> dict[str, JSON]:
    eta_s = None if outlook.eta_s is None else round(outlook.eta_s, 3)
    return {"queue_position": outlook.queue_position, "eta_s": eta_s}


def render_card(card: ModelCard, engine: str, links: Links) -> dict[str, JSON]:
    limits = card.limits
    ratios: dict[str, JSON] = {name: str(size) for name, size in card.ratios.items()}
    return {
        "id": card.id,
        "title": card.title,
        "description": card.description,
        "tasks": [task.value for task in card.tasks],
        "aliases": list(card.aliases),
        "is_open": card.is_open,
        "weights": card.weights,
        "license": card.license,
        "license_url": card.license_url,
        "engine": engine,
        "defaults": {
            "num_steps": card.num_steps,
            "guidance": card.guidance,
            "size": str(card.size),
            "output_format": card.output_format.value,
            "output_quality": card.output_quality,
        },
        "limits": {
            "num_steps": list(limits.num_steps),
            "guidance": list(limits.guidance),
            "side_px": list(limits.side),
            "pixels_max": limits.pixels_max,
            "multiple_px": limits.multiple,
            "images": list(limits.images),
            "num_outputs_max": limits.outputs_max,
            "prompt_max": limits.prompt_max,
        },
        "aspect_ratios": ratios,
        "urls": {"get": links.to(f"/models/{card.id}")},
    }


def error(failure: Failure) -> tuple[int, JSON]:
    return HTTP_STATUS[failure.code], {"error": _failure(failure)}


def _failure(failure: Failure) -> dict[str, JSON]:
    problems: list[JSON] = [
        {"field": problem.whole, "rule": problem.rule.value, "message": problem.message}
        for problem in failure.problems
    ]
    return {
        "code": failure.code.value,
        "message": failure.message,
        "field": (failure.problems[0].whole or None) if failure.problems else failure.field,
        "problems": problems,
    }


def _request(request: ImageRequest) -> dict[str, JSON]:
    images: list[JSON] = [
        {"url": image.url}
        if image.blob is None
        else {"width": image.blob.width, "height": image.blob.height, "mime": image.blob.mime}
        for image in request.images
    ]
    return {
        "task": request.task,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "images": images,
        "has_mask": request.mask is not None,
        "width": request.width,
        "height": request.height,
        "num_steps": request.num_steps,
        "guidance": request.guidance,
        "strength": request.strength,
        "seed": request.seed,
        "num_outputs": request.num_outputs,
        "output_format": request.output_format,
        "output_quality": request.output_quality,
        "go_fast": request.go_fast,
        "approximate": None if request.approximate is None else list(request.approximate),
        "preview_steps": request.preview_steps,
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")


def _text(values: Mapping[str, JSON], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) else None


def _int(values: Mapping[str, JSON], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(values: Mapping[str, JSON], name: str) -> float | None:
    value = values.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _approximations(value: JSON) -> tuple[Approximation, ...] | None:
    if not isinstance(value, list):
        return None
    return tuple(dict.fromkeys(Approximation(str(name)) for name in value))


def _margins(value: JSON) -> Margins | None:
    if not isinstance(value, dict):
        return None
    sides = tuple(
        Field(name=side, kind=Kind.INTEGER, default=0, min=0, max=2048)
        for side in ("top", "bottom", "left", "right")
    )
    checked = check(sides, value, parent="margins", unknown=False)
    if checked.problems:
        raise InvalidRequest.of(checked.problems)
    top, bottom, left, right = (_int(checked.values, side.name) or 0 for side in sides)
    return Margins(top=top, bottom=bottom, left=left, right=right)


def _loras(value: JSON) -> tuple[LoraRef, ...]:
    if not isinstance(value, list):
        return ()
    fields = (
        Field(name="path", kind=Kind.STRING, required=True),
        Field(name="scale", kind=Kind.NUMBER, default=1.0, min=-4, max=4),
    )
    found: list[LoraRef] = []
    for position, item in enumerate(value):
        assert isinstance(item, dict), "judged by the schema"
        checked = check(fields, item, parent=f"loras.{position}", unknown=False)
        if checked.problems:
            raise InvalidRequest.of(checked.problems)
        path = _text(checked.values, "path") or ""
        scale = _float(checked.values, "scale")
        found.append(LoraRef(path=path, scale=1.0 if scale is None else scale))
    return tuple(found)
