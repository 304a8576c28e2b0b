"""The body of a create: read, judged, and split into what the core and the answer need."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from fluxserve.core.errors import InvalidRequest, Problem, Rule, TooLarge
from fluxserve.core.ports import Idempotency
from fluxserve.core.request import JSON, WebhookSpec
from fluxserve.core.schema import Field, Kind, check
from fluxserve.dialects.base import parse_object, read_body
from fluxserve.dialects.replicate.shelf import Model, Shelf

EVENTS = ("start", "output", "logs", "completed")
DEFAULT_EVENTS = ("output", "completed")
INPUT_MAX = 2_000_000  # characters of an input as it is kept, pictures left out
DEPTH_MAX = 32
PLAIN = (str, int, bool)
KEY_MAX = 255  # characters of an idempotency key
COMMON = (
    Field(name="input", kind=Kind.OBJECT, required=True, nullable=False),
    Field(name="webhook", kind=Kind.URI),
    Field(name="webhook_events_filter", kind=Kind.ARRAY, items=Kind.STRING),
    Field(name="webhook_completed", kind=Kind.URI),
    Field(name="stream", kind=Kind.BOOLEAN),
)
VERSION = Field(name="version", kind=Kind.STRING, required=True)
MODEL = Field(name="model", kind=Kind.STRING)
BY_MODEL = (*COMMON, MODEL)
BY_VERSION = (*COMMON, VERSION, MODEL)
DIGITS_MAX = 6  # times as long as it came a body can become when its numbers are written anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """A create that has the right form; its input is not judged by the model's table yet."""

    model: Model
    version: str | None  # the version id that the caller named
    input: Mapping[str, JSON]
    webhook: WebhookSpec | None
    echo: Mapping[str, JSON]  # the webhook fields as they were sent
    idempotency: Idempotency | None
    size_bytes: int  # of the body

    @property
    def webhook_field(self) -> str:
        """The field that named the webhook, if one did."""
        return "webhook" if "webhook" in self.echo else "webhook_completed"


async def read_create(request: Request, shelf: Shelf, name: str | None, max_bytes: int) -> Create:
    """`name` is the model's name in the path; None where the body names a version.

    InvalidRequest names every bad field; NotFound for a model or version that is not there.
    """
    model = shelf.named(name) if name is not None else None
    raw = await read_body(request, max_bytes)
    body = parse_object(raw)
    fields: tuple[Field, ...] = COMMON
    if name is None:
        by_model = body.get("version") is None and body.get("model") is not None
        fields = BY_MODEL if by_model else BY_VERSION
    checked = check(fields, body, unknown=False)
    if checked.problems or len(body) > 1:
        problems = [*checked.problems, *_judge_filter(checked.values)]
        for url in ("webhook", "webhook_completed"):
            problems += _judge_webhook(url, checked.values.get(url))
        if problems:
            raise InvalidRequest.of(problems)
    version = None
    if model is None:
        wanted = checked.values.get("version")
        wanted = checked.values.get("model") if wanted is None else wanted
        assert isinstance(wanted, str), "one of the two is required and a string"
        model, version = shelf.versioned(wanted)
    given = checked.values["input"]
    assert isinstance(given, Mapping), "checked to be an object"
    _judge_depth(given)
    return Create(
        model=model,
        version=version,
        input=given,
        webhook=_webhook(checked.values),
        echo=_echo(body),
        idempotency=_idempotency(request, raw),
        size_bytes=len(raw),
    )


def judge_size(said: Mapping[str, JSON], body_bytes: int) -> None:
    """Refuse to keep an input that is huge besides its pictures."""
    if body_bytes * DIGITS_MAX <= INPUT_MAX:
        return
    size = len(json.dumps(said, ensure_ascii=False))
    if size > INPUT_MAX:
        message = f"input: at most {INPUT_MAX} characters besides pictures, not {size}"
        raise TooLarge(message, field="input")


def _webhook(values: Mapping[str, JSON]) -> WebhookSpec | None:
    url, legacy = values.get("webhook"), values.get("webhook_completed")
    if isinstance(url, str):
        wanted = values.get("webhook_events_filter")
        chosen = [str(item) for item in wanted] if isinstance(wanted, Sequence) else []
        return WebhookSpec(url=url, events=tuple(dict.fromkeys(chosen)) or DEFAULT_EVENTS)
    if isinstance(legacy, str):
        return WebhookSpec(url=legacy, events=("completed",))
    return None


def _echo(body: Mapping[str, JSON]) -> Mapping[str, JSON]:
    names = ("webhook", "webhook_events_filter", "webhook_completed")
    return {name: body[name] for name in names if body.get(name) is not None}


def _judge_filter(values: Mapping[str, JSON]) -> list[Problem]:
    wanted = values.get("webhook_events_filter")
    if not isinstance(wanted, Sequence) or isinstance(wanted, str):
        return []
    listed = ", ".join(f'"{event}"' for event in EVENTS)
    return [
        Problem(
            field=f"webhook_events_filter.{position}",
            rule=Rule.CHOICE,
            message=f"webhook_events_filter.{position} must be one of the following: {listed}",
            choices=EVENTS,
        )
        for position, event in enumerate(wanted)
        if event not in EVENTS
    ]


def _judge_webhook(name: str, value: JSON) -> list[Problem]:
    if not isinstance(value, str):
        return []
    try:
        parts = urlsplit(value)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_url = is_url and (parts.port is None or parts.port > 0) and len(value) <= 8192
    except ValueError:
        is_url = False
    if is_url and not any(character.isspace() or character < " " for character in value):
        return []
    message = "Does not match format 'uri'"
    return [Problem(field=name, rule=Rule.FORMAT, message=message, expected="uri")]


def _judge_depth(value: JSON, depth: int = 0) -> None:
    """Refuse what cannot be echoed: numbers beyond JSON, nesting without end."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _odd("a number that is too large")
    if value is None or isinstance(value, str | int | float):
        return
    if depth >= DEPTH_MAX:
        raise _odd(f"nested more than {DEPTH_MAX} deep")
    for item in value.values() if isinstance(value, Mapping) else value:
        if type(item) not in PLAIN:
            _judge_depth(item, depth + 1)


def _odd(message: str) -> InvalidRequest:
    return InvalidRequest.of([Problem(field="input", rule=Rule.OTHER, message=message)])


def _idempotency(request: Request, raw: bytes) -> Idempotency | None:
    key = request.headers.get("idempotency-key", "").strip()
    if not key:
        return None
    if len(key) > KEY_MAX:
        message = f"Idempotency-Key may have at most {KEY_MAX} characters"
        raise InvalidRequest.of(
            [Problem(field="Idempotency-Key", rule=Rule.OTHER, message=message)]
        )
    digest = hashlib.sha256(request.url.path.rpartition("/v1/")[2].encode() + b"\n")
    digest.update(raw)
    return Idempotency(key=key, body_hash=digest.hexdigest())
