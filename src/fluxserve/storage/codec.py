"""Values of the core as columns and JSON text, and back.

Fields that hold their default are left out; names that are not known are ignored and missing ones
take their default, so rows of an older or newer build can be read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, cast

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.prediction import OutputImage
from fluxserve.core.request import (
    JSON,
    BlobRef,
    ImageInput,
    ImageRequest,
    LoraRef,
    Margins,
    Origin,
    OutputFormat,
    Task,
    WebhookSpec,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REQUESTS_CACHED = 1024  # decoded requests and origins: a polled prediction is decoded once

Decoded = Mapping[str, Any]


# --- times and text ------------------------------------------------------------------------------


def to_micros(at: datetime) -> int:
    """Microseconds since the epoch; `at` knows its time zone."""
    delta = at - EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def maybe_micros(at: datetime | None) -> int | None:
    return None if at is None else to_micros(at)


def to_time(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


def maybe_time(micros: int | None) -> datetime | None:
    return None if micros is None else to_time(micros)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


# ASCII only: escapes carry lone surrogates and NUL, which the databases would refuse as text.
_encode = json.JSONEncoder(separators=(",", ":"), default=_plain).encode


def dump(value: JSON) -> str:
    return _encode(value)


def load(text: str) -> Any:
    return json.loads(text)


# --- dataclasses ---------------------------------------------------------------------------------


def _default(field_: Field[Any]) -> object:
    if field_.default_factory is not MISSING:
        return field_.default_factory()
    return field_.default


def _plain_fields(kind: type, structured: Sequence[str]) -> tuple[tuple[str, object], ...]:
    """Names and defaults of the fields whose values JSON holds as they are."""
    return tuple((f.name, _default(f)) for f in fields(kind) if f.name not in structured)


def _pack(value: object, plain: tuple[tuple[str, object], ...]) -> dict[str, Any]:
    return {name: held for name, default in plain if (held := getattr(value, name)) != default}


def _known(data: Decoded, plain: tuple[tuple[str, object], ...]) -> dict[str, Any]:
    return {name: data[name] for name, _ in plain if name in data}


_BLOB = _plain_fields(BlobRef, ())
_LORA = _plain_fields(LoraRef, ())
_MARGINS = _plain_fields(Margins, ())
_OUTPUT = _plain_fields(OutputImage, ("blob",))
_REQUEST = _plain_fields(
    ImageRequest, ("task", "images", "mask", "output_format", "margins", "loras")
)
_ORIGIN = _plain_fields(Origin, ("webhook",))
_WEBHOOK = _plain_fields(WebhookSpec, ("events",))
_FAILURE = _plain_fields(Failure, ("code", "problems"))
_PROBLEM = _plain_fields(Problem, ("rule", "choices"))


def pack_blob(blob: BlobRef) -> dict[str, Any]:
    return _pack(blob, _BLOB)


def unpack_blob(data: Decoded) -> BlobRef:
    return BlobRef(**_known(data, _BLOB))


def _pack_input(image: ImageInput) -> dict[str, Any]:
    return {"url": image.url} if image.blob is None else {"blob": pack_blob(image.blob)}


def _unpack_input(data: Decoded) -> ImageInput:
    blob = data.get("blob")
    return ImageInput(blob=None if blob is None else unpack_blob(blob), url=data.get("url"))


# --- the request and where it came from ----------------------------------------------------------


def encode_request(request: ImageRequest) -> str:
    data = _pack(request, _REQUEST)
    data["task"] = request.task
    data["output_format"] = request.output_format
    if request.images:
        data["images"] = [_pack_input(image) for image in request.images]
    if request.mask is not None:
        data["mask"] = _pack_input(request.mask)
    if request.margins is not None:
        data["margins"] = _pack(request.margins, _MARGINS)
    if request.loras:
        data["loras"] = [_pack(lora, _LORA) for lora in request.loras]
    return _encode(data)


@lru_cache(maxsize=REQUESTS_CACHED)
def decode_request(text: str) -> ImageRequest:
    data = load(text)
    mask, margins = data.get("mask"), data.get("margins")
    return ImageRequest(
        task=Task(data["task"]),
        images=tuple(_unpack_input(image) for image in data.get("images", ())),
        mask=None if mask is None else _unpack_input(mask),
        output_format=OutputFormat(data["output_format"]),
        margins=None if margins is None else Margins(**_known(margins, _MARGINS)),
        loras=tuple(LoraRef(**_known(lora, _LORA)) for lora in data.get("loras", ())),
        **_known(data, _REQUEST),
    )


def encode_origin(origin: Origin) -> str:
    data = _pack(origin, _ORIGIN)
    if origin.webhook is not None:
        webhook = _pack(origin.webhook, _WEBHOOK)
        webhook["events"] = origin.webhook.events
        data["webhook"] = webhook
    return _encode(data)


@lru_cache(maxsize=REQUESTS_CACHED)
def decode_origin(text: str) -> Origin:
    data = load(text)
    webhook = data.get("webhook")
    return Origin(
        webhook=None
        if webhook is None
        else WebhookSpec(events=tuple(webhook["events"]), **_known(webhook, _WEBHOOK)),
        **_known(data, _ORIGIN),
    )


def input_blobs(request: ImageRequest) -> tuple[BlobRef, ...]:
    """The stored pictures that a request needs."""
    images = request.images if request.mask is None else (*request.images, request.mask)
    return tuple(image.blob for image in images if image.blob is not None)


# --- what became of it ---------------------------------------------------------------------------


def encode_outputs(outputs: Sequence[OutputImage]) -> str:
    if not outputs:
        return "[]"
    return _encode([{**_pack(o, _OUTPUT), "blob": pack_blob(o.blob)} for o in outputs])


def decode_outputs(text: str) -> tuple[OutputImage, ...]:
    if text == "[]":
        return ()
    return tuple(
        OutputImage(blob=unpack_blob(data["blob"]), **_known(data, _OUTPUT)) for data in load(text)
    )


def encode_failure(failure: Failure | None) -> str | None:
    if failure is None:
        return None
    data = _pack(failure, _FAILURE)
    data["code"] = failure.code
    if failure.problems:
        data["problems"] = [
            {**_pack(problem, _PROBLEM), "rule": problem.rule, "choices": problem.choices}
            for problem in failure.problems
        ]
    return _encode(data)


def decode_failure(text: str | None) -> Failure | None:
    if text is None:
        return None
    data = load(text)
    return Failure(
        code=ErrorCode(data["code"]),
        problems=tuple(
            Problem(
                rule=Rule(problem["rule"]),
                choices=tuple(problem["choices"]),
                **_known(problem, _PROBLEM),
            )
            for problem in data.get("problems", ())
        ),
        **_known(data, _FAILURE),
    )


def encode_map(data: Mapping[str, JSON]) -> str:
    return _encode(data) if data else "{}"


def decode_map(text: str) -> Mapping[str, JSON]:
    return {} if text == "{}" else cast(Mapping[str, JSON], load(text))


def encode_words(words: str) -> str:
    return _encode(words) if words else ""


def decode_words(text: str) -> str:
    return load(text) if text else ""
