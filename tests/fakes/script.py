"""What a fake provider does with each submission: one `Act`, taken from a `Script`."""

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Submit(StrEnum):
    """How the submission itself is answered; `*_AFTER` means that the job exists nevertheless."""

    OK = "ok"
    DROP_BEFORE = "drop_before"  # read, then the connection is cut; nothing was accepted
    DROP_AFTER = "drop_after"
    ERROR_BEFORE = "error_before"  # 503
    ERROR_AFTER = "error_after"
    HTML_BEFORE = "html_before"  # 200 with a page instead of JSON
    HTML_AFTER = "html_after"
    ERROR_INSIDE = "error_inside"  # 200 with an error inside
    NO_ID = "no_id"  # 200, JSON, accepted, but without an id
    WRONG_TYPE = "wrong_type"  # 200 with a JSON list
    ENDLESS = "endless"  # a body without end
    REDIRECT = "redirect"  # 307 to a private address
    WRONG_KEY = "wrong_key"
    NO_CREDIT = "no_credit"
    UNKNOWN_MODEL = "unknown_model"
    INVALID = "invalid"
    RATE_LIMITED = "rate_limited"
    MODERATED = "moderated"  # refused at once, where the kind has a word for it

    @property
    def accepts(self) -> bool:
        """Whether a job exists afterwards."""
        return self in {Submit.OK, Submit.DROP_AFTER, Submit.ERROR_AFTER, Submit.HTML_AFTER,
                        Submit.NO_ID}  # fmt: skip


class Poll(StrEnum):
    """How the next `poll_faults` polls of the job are answered."""

    OK = "ok"
    WRONG_ID = "wrong_id"
    HTML = "html"
    WRONG_TYPE = "wrong_type"
    ERROR = "error"
    DROP = "drop"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    ENDLESS = "endless"
    STRANGE = "strange"  # a status nobody ever heard of


class Output(StrEnum):
    """What the link to the picture leads to."""

    OK = "ok"
    TEXT = "text"  # words that call themselves image/png
    ENDLESS = "endless"
    REDIRECT = "redirect"  # 302 to a private address
    FOREIGN = "foreign"  # the link itself names a private address
    FILE_URL = "file_url"
    NOT_FOUND = "not_found"
    DROP = "drop"  # half the bytes, then the connection is cut
    ONCE_DROP = "once_drop"  # the same, but only the first time
    NOTHING = "nothing"  # finished without any output
    DATA_URI = "data_uri"


class Outcome(StrEnum):
    """How the job ends."""

    SUCCEED = "succeed"
    FAIL = "fail"
    MODERATED_INPUT = "moderated_input"
    MODERATED_OUTPUT = "moderated_output"
    CANCELED = "canceled"
    HANG = "hang"


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One submission's fate."""

    submit: Submit = Submit.OK
    accept_s: float = 0.0  # the answer to the submission comes this late; the job exists at once
    pending_polls: int = 0  # polls answered "not yet" before the end is told
    work_s: float = 0.0  # time before the end is told
    poll: Poll = Poll.OK
    poll_faults: int = 1_000_000
    poll_origin: str | None = None  # the origin written into poll links, where the kind has them
    output: Output = Output.OK
    outcome: Outcome = Outcome.SUCCEED
    reason: str = "the fake was told to fail"
    retry_after_s: int = 1
    webhooks: int = 1  # how often the final webhook is sent


def act_of(said: Mapping[str, Any]) -> Act:
    """An act from its fields as JSON has them."""
    kinds = {"submit": Submit, "poll": Poll, "output": Output, "outcome": Outcome}
    values: dict[str, Any] = dict(said)
    for name in kinds.keys() & values:
        values[name] = kinds[name](values[name])
    return Act(**values)


@dataclass(slots=True)
class Script:
    """Acts in order; when they run out, `default`, with `faults` mixed in at `share`."""

    default: Act = field(default_factory=Act)
    queue: deque[Act] = field(default_factory=deque)
    faults: tuple[Submit, ...] = ()
    share: float = 0.0  # 0..1: how many submissions meet one of `faults`
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    def then(self, *acts: Act) -> None:
        """Append acts, each for one submission."""
        self.queue.extend(acts)

    def next(self) -> Act:
        """The act of the next submission."""
        if self.queue:
            return self.queue.popleft()
        if self.faults and self.dice.random() < self.share:
            return replace(self.default, submit=self.dice.choice(self.faults))
        return self.default
