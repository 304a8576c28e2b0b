"""Values of the core as columns and JSON text, and back.

Fields that hold their default are left out; names that are not known are ignored and missing ones
take their default, so rows of an older or newer build can be read. So can errors of a newer one:
a row that could not be read would stop every list and every sweep that comes upon it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar, cast

import msgspec

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.prediction import OutputImage
from fluxserve.core.request import (
    JSON,
    Approximation,
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
E = TypeVar("E", bound=StrEnum)


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


# Escapes carry NUL, which the databases would refuse as text; half surrogate pairs need ASCII.
_encode_utf8 = msgspec.json.Encoder(enc_hook=_plain).encode
_encode_ascii = json.JSONEncoder(separators=(",", ":"), default=_plain, check_circular=False).encode
_decode = msgspec.json.Decoder().decode


def _encode(value: object) -> str:
    try:
        return _encode_utf8(value).decode()
    except UnicodeEncodeError:
        return _encode_ascii(value)


def dump(value: JSON) -> str:
    return _encode(value)


def load(text: str) -> Any:
    try:
        return _decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        return json.loads(text)  # half surrogate pairs; what is damaged raises ValueError


# --- dataclasses ---------------------------------------------------------------------------------


class Plain:
    """The fields of a dataclass whose values JSON holds as they are."""

    def __init__(self, kind: type, *structured: str) -> None:
        plain = [one for one in fields(kind) if one.name not in structured]
        self._names = tuple(one.name for one in plain)
        self._defaults = tuple(_default(one) for one in plain)
        self._values = attrgetter(*self._names)

    def pack(self, value: object) -> dict[str, Any]:
        """Those of them that differ from their default."""
        values = zip(self._names, self._values(value), self._defaults, strict=True)
        return {name: held for name, held, default in values if held != default}

    def known(self, data: Decoded) -> dict[str, Any]:
        """Those of them that `data` speaks of."""
        return {name: data[name] for name in self._names if name in data}


def _default(field_: Field[Any]) -> object:
    if field_.default_factory is not MISSING:
        return field_.default_factory()
    return field_.default


_BLOB = Plain(BlobRef)
_LORA = Plain(LoraRef)
_MARGINS = Plain(Margins)
_OUTPUT = Plain(OutputImage, "blob")
_REQUEST = Plain(
    ImageRequest, "task", "images", "mask", "output_format", "margins", "loras", "approximate"
)
_ORIGIN = Plain(Origin, "webhook")
_WEBHOOK = Plain(WebhookSpec, "events")
_FAILURE = Plain(Failure, "code", "problems")
_PROBLEM = Plain(Problem, "rule", "choices")


def pack_blob(blob: BlobRef) -> dict[str, Any]:
    return _BLOB.pack(blob)


def unpack_blob(data: Decoded) -> BlobRef:
    return BlobRef(**_BLOB.known(data))


def _pack_input(image: ImageInput) -> dict[str, Any]:
    held = {"url": image.url} if image.blob is None else {"blob": pack_blob(image.blob)}
    return {**held, "field_name": image.field_name} if image.field_name else held


def _unpack_input(data: Decoded) -> ImageInput:
    blob = data.get("blob")
    return ImageInput(
        blob=None if blob is None else unpack_blob(blob),
        url=data.get("url"),
        field_name=data.get("field_name", ""),
    )


def _ours(kind: type[E], word: str) -> E | None:
    """The word of this build, or None where another build's is not among them."""
    try:
        return kind(word)
    except ValueError:
        return None


# --- the request and where it came from ----------------------------------------------------------


def encode_request(request: ImageRequest) -> str:
    data = _REQUEST.pack(request)
    data["task"] = request.task
    data["output_format"] = request.output_format
    if request.images:
        data["images"] = [_pack_input(image) for image in request.images]
    if request.mask is not None:
        data["mask"] = _pack_input(request.mask)
    if request.margins is not None:
        data["margins"] = _MARGINS.pack(request.margins)
    if request.loras:
        data["loras"] = [_LORA.pack(lora) for lora in request.loras]
    if request.approximate is not None:
        data["approximate"] = request.approximate
    return _encode(data)


@lru_cache(maxsize=REQUESTS_CACHED)
def decode_request(text: str) -> ImageRequest:
    data = load(text)
    mask, margins = data.get("mask"), data.get("margins")
    approximate = data.get("approximate")
    return ImageRequest(
        task=Task(data["task"]),
        images=tuple(_unpack_input(image) for image in data.get("images", ())),
        mask=None if mask is None else _unpack_input(mask),
        output_format=OutputFormat(data["output_format"]),
        margins=None if margins is None else Margins(**_MARGINS.known(margins)),
        loras=tuple(LoraRef(**_LORA.known(lora)) for lora in data.get("loras", ())),
        approximate=None if approximate is None else _known(approximate),
        **_REQUEST.known(data),
    )


def _known(names: Sequence[str]) -> tuple[Approximation, ...]:
    """Those that this build has: what it has not, it leaves exact."""
    return tuple(one for name in names if (one := _ours(Approximation, name)) is not None)


def encode_origin(origin: Origin) -> str:
    data = _ORIGIN.pack(origin)
    if origin.webhook is not None:
        webhook = _WEBHOOK.pack(origin.webhook)
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
        else WebhookSpec(events=tuple(webhook["events"]), **_WEBHOOK.known(webhook)),
        **_ORIGIN.known(data),
    )


def input_blobs(request: ImageRequest) -> tuple[BlobRef, ...]:
    """The stored pictures that a request needs."""
    images = request.images if request.mask is None else (*request.images, request.mask)
    return tuple(image.blob for image in images if image.blob is not None)


# --- what became of it ---------------------------------------------------------------------------


def encode_outputs(outputs: Sequence[OutputImage]) -> str:
    if not outputs:
        return "[]"
    return _encode([{**_OUTPUT.pack(o), "blob": pack_blob(o.blob)} for o in outputs])


def decode_outputs(text: str) -> tuple[OutputImage, ...]:
    if text == "[]":
        return ()
    return tuple(
        OutputImage(blob=unpack_blob(data["blob"]), **_OUTPUT.known(data)) for data in load(text)
    )


def encode_failure(failure: Failure | None) -> str | None:
    if failure is None:
        return None
    data = _FAILURE.pack(failure)
    data["code"] = failure.code
    if failure.problems:
        data["problems"] = [
            {**_PROBLEM.pack(problem), "rule": problem.rule, "choices": problem.choices}
            for problem in failure.problems
        ]
    return _encode(data)


def decode_failure(text: str | None) -> Failure | None:
    if text is None:
        return None
    data = load(text)
    return Failure(
        code=_ours(ErrorCode, data["code"]) or ErrorCode.INTERNAL,
        problems=tuple(
            Problem(
                rule=_ours(Rule, problem["rule"]) or Rule.OTHER,
                choices=tuple(problem["choices"]),
                **_PROBLEM.known(problem),
            )
            for problem in data.get("problems", ())
        ),
        **_FAILURE.known(data),
    )


def encode_map(data: Mapping[str, JSON]) -> str:
    return _encode(data) if data else "{}"


def decode_map(text: str) -> Mapping[str, JSON]:
    return {} if text == "{}" else cast(Mapping[str, JSON], load(text))


def encode_words(words: str) -> str:
    return _encode(words) if words else ""


def decode_words(text: str) -> str:
    return load(text) if text else ""
