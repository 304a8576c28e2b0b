"""Reads provider answers that may be anything: the right kind of value, or nothing."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fluxserve.core.errors import ErrorCode, Failure
from fluxserve.core.request import JSON
from fluxserve.engines.upstream.answers import Declared, Doubtful, PollLie, Refusal, Refused
from fluxserve.engines.upstream.wire import Answer

ID_MAX = 200  # characters of an upstream id
LOGS_MAX = 64_000  # characters
MODERATION_MARKS = (
    "nsfw",
    "(e005)",
    "flagged as sensitive",
    "moderat",
    "safety system",
    "sensitive",
)


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def job_id(value: Any) -> str:
    """An upstream id that can be put in a path; "" when it is none."""
    said = text(value)
    plain = said.replace("-", "").replace("_", "")
    return said if 0 < len(said) <= ID_MAX and plain.isascii() and plain.isalnum() else ""


def moment(value: Any) -> datetime | None:
    """An ISO 8601 time, UTC where nothing is said."""
    try:
        at = datetime.fromisoformat(text(value).replace("Z", "+00:00"))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def accepted_body(answer: Answer) -> Mapping[str, Any]:
    """The body of a successful submission; Doubtful when it cannot be understood."""
    try:
        return answer.json()
    except PollLie as lie:
        raise Doubtful(str(lie)) from lie


def no_id(name: str, body: Mapping[str, Any], status: int | None = None) -> Exception:
    """What a submission without an id amounts to: the error inside, or doubt."""
    error = body.get("error") or body.get("detail")
    said = text(error) or text(mapping(error).get("message")) or text(body.get("message"))
    if status is None:
        kind = text(mapping(error).get("type"))
        status = int(kind) if kind.isascii() and kind.isdecimal() else None
    if status is not None and 400 <= status < 500:
        return Refused(refusal_of(status), f"{name}: {said or status}")
    if error or (status is not None and status >= 500):
        words = f"{name}: {said or 'the provider answered with an error'}"
        return Declared(Failure(code=ErrorCode.UPSTREAM_FAILED, message=words))
    return Doubtful(f"{name} answered without an id")


def refusal_of(status: int) -> Refusal:
    match status:
        case 401 | 403:
            return Refusal.KEY
        case 402:
            return Refusal.CREDIT
        case 404:
            return Refusal.MODEL
        case 429:
            return Refusal.RATE
        case _:
            return Refusal.INPUT


def is_moderation(words: str) -> bool:
    """Whether a provider's sentence speaks of its content check."""
    lower = words.lower()
    return any(mark in lower for mark in MODERATION_MARKS)


def failed(name: str, words: str, code: ErrorCode = ErrorCode.UPSTREAM_FAILED) -> Failure:
    """A job that the provider ended, with its own reason kept."""
    if code is ErrorCode.UPSTREAM_FAILED and is_moderation(words):
        code = ErrorCode.OUTPUT_REFUSED
    reason = " ".join(words.split())[:500] or "no reason was given"
    return Failure(code=code, message=f"{name}: {reason}")


def matches(listed: Any, sent: Mapping[str, JSON]) -> bool | None:
    """Whether a listed job's input has every plain field that was sent, with the same value.

    False where a field has another value, or none is there: a job of another sort. None where
    only some are, or where the list does not show the input, or no longer: that tells nothing.
    """
    found = mapping(listed)
    plain = {k: v for k, v in sent.items() if v is not None and not isinstance(v, list | dict)}
    shown = {name: value for name, value in plain.items() if found.get(name) is not None}
    if not found or not plain:
        return None
    if not shown or any(found[name] != value for name, value in shown.items()):
        return False
    return True if len(shown) == len(plain) else None
