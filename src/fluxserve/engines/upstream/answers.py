"""The words a provider's client speaks: what it is asked, and the few ways it can answer."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from fluxserve.core.errors import Failure
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import JSON, ImageRequest

# What providers list, and the names they know repeats by, ends some day. Older than this, nothing
# proves that a submission never happened.
REMEMBERED_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One paid submission, ready to be sent."""

    token: str  # the attempt's id
    model: str  # as the provider calls it
    request: ImageRequest  # seed and number of outputs of this part; the size is settled
    images: tuple[EncodedImage, ...] = ()
    mask: EncodedImage | None = None
    callback_url: str = ""  # carries the token; empty: the provider cannot reach us


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An order in a provider's words, ready for the one POST that costs money."""

    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, JSON] | None = None  # sent as JSON
    form: Mapping[str, str] = field(default_factory=dict)  # sent as multipart, with `files`
    files: Sequence[tuple[str, tuple[str, bytes, str]]] = ()  # field, (name, bytes, mime)
    facts: Mapping[str, str] = field(default_factory=dict)  # kept, to find the job again


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A submission whose answer was lost."""

    token: str
    model: str
    created_at: datetime
    age_s: float
    facts: Mapping[str, str]  # of its letter
    order: Callable[[], Awaitable[Order]]  # the order again, inputs loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Where a provider's job is found again."""

    upstream_id: str
    poll_url: str = ""
    model: str = ""
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """Not done yet."""

    progress: float | None = None  # 0 .. 1
    logs: str = ""  # the provider's log so far, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Done: links to the pictures, or the bytes themselves."""

    pictures: Sequence[str | bytes]
    flagged: Sequence[bool] = ()
    logs: str = ""
    metrics: Mapping[str, JSON] = field(default_factory=dict)
    cost_micro: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Ended without pictures."""

    failure: Failure
    is_canceled: bool = False
    logs: str = ""
    metrics: Mapping[str, JSON] = field(default_factory=dict)
    cost_micro: int = 0


State: TypeAlias = Working | Finished | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The provider has the job; `state` where it told more than an id."""

    ticket: Ticket
    state: State = field(default_factory=Working)
    cost_micro: int | None = None  # what it says it will take


class Refusal(StrEnum):
    """Why a submission provably did not happen."""

    UNREACHABLE = "unreachable"
    KEY = "key"
    CREDIT = "credit"
    MODEL = "model"
    INPUT = "input"
    CONTENT = "content"
    RATE = "rate"
    BROKEN = "broken"  # an answer that makes no sense, and says that nothing happened

    @property
    def is_trouble(self) -> bool:
        """Whether the channel itself is to blame, so that it should rest."""
        return self in {Refusal.UNREACHABLE, Refusal.KEY, Refusal.CREDIT, Refusal.RATE,
                        Refusal.BROKEN}  # fmt: skip

    @property
    def passes(self) -> bool:
        """Whether waiting may cure it."""
        return self in {Refusal.UNREACHABLE, Refusal.RATE, Refusal.BROKEN}


class Refused(Exception):
    """A submission that provably did not happen; another channel may be tried."""

    def __init__(self, kind: Refusal, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s


class Doubtful(Exception):
    """A submission that may or may not have happened."""


class Declared(Exception):
    """The provider says in so many words that the submission failed; nothing to look up."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class PollTrouble(Exception):
    """A poll, look-up or download came to nothing; it may be tried again."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PollLie(Exception):
    """An answer that cannot be true or used, and will not get better."""


class Lookup(StrEnum):
    """What a look-up by token or input found, where it found no job."""

    ABSENT = "absent"  # the provider can list, and it is not there
    IMPOSSIBLE = "impossible"  # the provider offers no way to look


class Provider(Protocol):
    """The client side of one kind of provider, for one channel."""

    can_poll: bool  # False: the answer to a submission is all there ever is

    def outputs_max(self, model: str) -> int:
        """Pictures that one submission can make."""
        ...

    async def prepare(self, order: Order) -> Letter:
        """Put an order into words, uploading its pictures where need be. Refused."""
        ...

    async def submit(self, letter: Letter, order: Order) -> Accepted:
        """Send one paid submission, once. Refused, Doubtful, Declared."""
        ...

    async def poll(self, ticket: Ticket) -> State:
        """PollTrouble, PollLie."""
        ...

    async def picture(self, url: str) -> bytes:
        """The bytes behind an output link. PollTrouble, PollLie."""
        ...

    async def cancel(self, ticket: Ticket) -> bool:
        """Ask for an end; False where the provider has no such thing or refused. PollTrouble."""
        ...

    async def find(self, lost: Lost, taken: "Taken") -> Accepted | Lookup:
        """Look for a submission whose answer was lost. PollTrouble, PollLie, Declared."""
        ...

    def heard(self, body: Mapping[str, JSON]) -> str | None:
        """The upstream id in the body of a callback."""
        ...

    async def close(self) -> None: ...


class Taken(Protocol):
    """Which upstream ids already belong to other attempts."""

    async def __call__(self, upstream_ids: Sequence[str]) -> frozenset[str]: ...
