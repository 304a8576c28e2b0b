"""The error tree: raised inside a process, carried as a `Failure` everywhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """Every way a request or a prediction can go wrong; each dialect has words for all of them."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    BUDGET_EXHAUSTED = "budget_exhausted"
    UNKNOWN_MODEL = "unknown_model"
    NOT_FOUND = "not_found"
    WRONG_METHOD = "method_not_allowed"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    QUEUE_FULL = "queue_full"
    INPUT_UNREACHABLE = "input_unreachable"
    INPUT_REFUSED = "input_refused"
    OUTPUT_REFUSED = "output_refused"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    ENGINE_FAILED = "engine_failed"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_UNKNOWN = "upstream_unknown"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class Rule(StrEnum):
    """Which kind of rule a field broke; dialects word it their own way."""

    REQUIRED = "required"
    UNKNOWN = "unknown"
    TYPE = "type"
    CHOICE = "choice"
    MIN = "min"
    MAX = "max"
    MAX_ITEMS = "max_items"
    FORMAT = "format"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One bad field. `message` says what is wrong and what would be right, without the name."""

    field: str  # as the caller spelled it; dotted for nested ones; "" for the body itself
    rule: Rule
    message: str
    limit: float | None = None  # MIN, MAX, MAX_ITEMS
    choices: tuple[str, ...] = ()  # CHOICE
    # TYPE, FORMAT: the JSON type or format that was wanted. REQUIRED, UNKNOWN: the name of what is
    # missing or too much, where `field` is the object around it.
    expected: str = ""
    given: str = ""  # TYPE: the JSON type that came

    @property
    def whole(self) -> str:
        """The name of the bad field itself, also where `field` is the object around it."""
        if self.rule not in (Rule.REQUIRED, Rule.UNKNOWN) or not self.expected:
            return self.field
        return f"{self.field}.{self.expected}" if self.field else self.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as a value: in the store, in answers, in webhooks."""

    code: ErrorCode
    message: str  # for the caller: no path, no secret
    field: str | None = None
    problems: tuple[Problem, ...] = ()
    retry_after_s: float | None = None

    @property
    def bare(self) -> str:
        """The message without the name of its field, for those who say the name themselves."""
        return self.message.removeprefix(f"{self.field}: ") if self.field else self.message


class FluxserveError(Exception):
    """The root; `message` is written for the caller."""

    code: ErrorCode = ErrorCode.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        problems: Sequence[Problem] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.problems = tuple(problems)
        self.retry_after_s = retry_after_s

    def failure(self) -> Failure:
        return Failure(
            code=self.code,
            message=self.message,
            field=self.field,
            problems=self.problems,
            retry_after_s=self.retry_after_s,
        )


class InvalidRequest(FluxserveError):
    """The caller asked for something that cannot be asked for; names the first field."""

    code = ErrorCode.INVALID_REQUEST

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> "InvalidRequest":
        """One error from one or more problems; the first gives the message and the field."""
        first = problems[0]
        is_named = not first.field or first.message.startswith(f"{first.field} ")
        text = first.message if is_named else f"{first.field}: {first.message}"
        return cls(text, field=first.field or None, problems=problems)

    def retold(self, told: Callable[[Problem], Problem]) -> "InvalidRequest":
        """The same with each problem as `told` gives it: in the words of whoever asked."""
        if not self.problems:
            return InvalidRequest(self.message, field=self.field)
        return InvalidRequest.of([told(problem) for problem in self.problems])


class Unauthenticated(FluxserveError):
    """No key, or one that nobody was given. `was_given` tells the two apart."""

    code = ErrorCode.UNAUTHENTICATED

    def __init__(self, message: str, *, was_given: bool = False) -> None:
        super().__init__(message)
        self.was_given = was_given


class Forbidden(FluxserveError):
    code = ErrorCode.FORBIDDEN


class BudgetExhausted(FluxserveError):
    code = ErrorCode.BUDGET_EXHAUSTED


class UnknownModel(FluxserveError):
    code = ErrorCode.UNKNOWN_MODEL


class NotFound(FluxserveError):
    code = ErrorCode.NOT_FOUND


class Conflict(FluxserveError):
    """The row is no longer what the writer thought: somebody else moved it."""

    code = ErrorCode.CONFLICT


class TooLarge(FluxserveError):
    code = ErrorCode.TOO_LARGE


class RateLimited(FluxserveError):
    code = ErrorCode.RATE_LIMITED


class QueueFull(FluxserveError):
    code = ErrorCode.QUEUE_FULL


class InputUnreachable(FluxserveError):
    """An input URL could not be fetched, or must not be."""

    code = ErrorCode.INPUT_UNREACHABLE


class EngineError(FluxserveError):
    """A job cannot be done; the job ends here and is not retried."""

    code = ErrorCode.ENGINE_FAILED


class InputRefused(EngineError):
    code = ErrorCode.INPUT_REFUSED


class OutputRefused(EngineError):
    code = ErrorCode.OUTPUT_REFUSED


class OutOfMemory(EngineError):
    code = ErrorCode.OUT_OF_MEMORY


class TimedOut(EngineError):
    code = ErrorCode.TIMED_OUT


class UpstreamFailed(EngineError):
    code = ErrorCode.UPSTREAM_FAILED


class UpstreamUnknown(EngineError):
    """A paid submission whose outcome nobody can tell."""

    code = ErrorCode.UPSTREAM_UNKNOWN


class EngineLost(FluxserveError):
    """The device or worker went away in mid-job: the job may run again, with the same seed."""

    code = ErrorCode.ENGINE_FAILED


class Unavailable(FluxserveError):
    code = ErrorCode.UNAVAILABLE


class StartupError(FluxserveError):
    """The server refuses to start: port, lock, key or configuration. Exit code 3, one sentence."""

    code = ErrorCode.UNAVAILABLE


def from_failure(failure: Failure) -> FluxserveError:
    """A stored failure as an exception again, for callers that raise."""
    error = FluxserveError(
        failure.message,
        field=failure.field,
        problems=failure.problems,
        retry_after_s=failure.retry_after_s,
    )
    error.code = failure.code
    return error
