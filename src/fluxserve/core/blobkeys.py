"""Where stored bytes lie, and from when on those that no row refers to may go.

    inputs/2026-11-21/<sha256>.png    named after their content: one blob serves many rows
    outputs/<prediction>/<attempt>-<index>.png
    uploads/<file>

An input is written before the row that needs it, so whoever deletes "what nobody needs" may meet
bytes whose row is on its way, on this server or on another one with the same store. Hence the day
in the name: nothing is written to a day that is over, and nothing is deleted before a whole day
more has passed. The two never meet, without a lock and without a question to the database.
"""

import re
from datetime import UTC, datetime, timedelta

GRACE = timedelta(days=1)  # from bytes to the row that refers to them, with clocks that disagree

_SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_INPUT = re.compile(r"inputs/(\d{4}-\d\d-\d\d)/")
_OUTPUT = re.compile(r"outputs/([^/]+)/")


def input_key(sha256: str, mime: str, at: datetime) -> str:
    """Where an input picture goes that arrives at `at`: the same bytes are kept once a day."""
    return f"inputs/{at.astimezone(UTC):%Y-%m-%d}/{sha256}.{_SUFFIX[mime]}"


def output_key(prediction_id: str, attempt: int, index: int, mime: str) -> str:
    """Where a picture goes: each start has places of its own, so a late one spoils nothing."""
    return f"outputs/{prediction_id}/{attempt}-{index}.{_SUFFIX.get(mime, 'bin')}"


def maker_of(key: str) -> str | None:
    """The prediction that a picture was made for; None where `key` is no output's."""
    found = _OUTPUT.match(key)
    return found[1] if found else None


def may_go(key: str, at: datetime) -> bool:
    """Whether at `at` nobody can be about to refer to `key` who has not done so yet."""
    found = _INPUT.match(key)
    if found is None:
        return True
    try:
        day = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
    except ValueError:  # written by somebody else
        return True
    return at >= day + timedelta(days=1) + GRACE
