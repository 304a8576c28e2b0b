"""The two request headers that say how long: `Prefer: wait=n` and `Cancel-After: 5m`."""

import re
from dataclasses import dataclass

from fluxserve.core.errors import InvalidRequest, Problem, Rule

WAIT_MAX_S = 60.0
WAIT_MIN_S = 0.5
CANCEL_MIN_S = 5
CANCEL_MAX_S = 86_400
# Answer before the client's own read timeout: 2.0.0b4 repeats the POST when that runs out.
EARLY_S = 0.5
CLIENT_MARGIN_S = 2.0
_PREFER = re.compile(r"wait(?:\s*=\s*(\d+(?:\.\d+)?))?", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Hold:
    """An answer held for so many seconds; `applied` is what `Preference-Applied` says."""

    seconds: float
    applied: str


def read_prefer(prefer: str | None, client_timeout: str | None) -> Hold | None:
    """None: answer at once. `client_timeout` is x-stainless-read-timeout, in seconds."""
    for preference in (prefer or "").split(","):
        match = _PREFER.fullmatch(preference.split(";")[0].strip())
        if match is None:
            continue
        asked = WAIT_MAX_S if match[1] is None else float(match[1])
        if asked < 1:
            continue
        bounds = [asked, WAIT_MAX_S]
        patience = _number(client_timeout)
        if patience is not None:
            bounds.append(patience - CLIENT_MARGIN_S)
        seconds = max(WAIT_MIN_S, min(bounds) - EARLY_S)
        return Hold(seconds, "wait" if match[1] is None else f"wait={match[1]}")
    return None


def read_cancel_after(text: str | None) -> float | None:
    """Seconds until the run is given up: `30`, `30s`, `5m`, `1h30m45s`. InvalidRequest."""
    if text is None or not text.strip():
        return None
    text = text.strip()
    if re.fullmatch(r"\d{1,9}", text):
        seconds = int(text)
    else:
        match = _DURATION.fullmatch(text)
        if match is None:
            raise _bad("must be a duration such as 30s, 5m or 1h30m45s")
        hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    if not CANCEL_MIN_S <= seconds <= CANCEL_MAX_S:
        raise _bad("must be between 5 seconds and 24 hours")
    return float(seconds)


def _bad(words: str) -> InvalidRequest:
    message = f"Cancel-After {words}"
    problem = Problem(field="Cancel-After", rule=Rule.FORMAT, message=message, expected="duration")
    return InvalidRequest(message, field="Cancel-After", problems=[problem])


def _number(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip()):
        return None
    return float(text)
