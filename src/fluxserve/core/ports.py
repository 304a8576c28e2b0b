"""What the core needs of the other rooms: engines, stores, blobs; and the values they exchange."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

from fluxserve.core.access import ApiKey
from fluxserve.core.deliveries import Delivery, DeliveryState
from fluxserve.core.events import Event
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON, BlobRef, ImageInput, ImageRequest

# --- engines ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A picture as bytes of its file format."""

    data: bytes
    mime: str
    width: int  # px
    height: int  # px


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request with its input bytes in hand. Width and height of the request are settled."""

    prediction_id: str
    attempt: int
    request: ImageRequest
    images: tuple[EncodedImage, ...] = ()  # EXIF orientation applied, format as uploaded
    mask: EncodedImage | None = None
    key_id: str | None = None  # for fair shares
    priority: int = 0
    created_at: datetime
    deadline_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`step` of `total` denoising steps are done; `eta_s` seconds are left, if known."""

    step: int
    total: int
    eta_s: float | None = None
    queue_position: int = 0  # inside the engine; 0: running


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A small picture of what is being made, by now."""

    image: EncodedImage
    step: int
    index: int = 0  # which output


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One finished picture. An engine yields each index once, in any order."""

    index: int
    image: EncodedImage
    seed: int
    flagged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One line for the caller's log; no line end, no prompt, no path."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Facts for the record: timings in seconds, model calls, approximations, who served."""

    metrics: Mapping[str, JSON]
    served_by: str = ""


EngineUpdate: TypeAlias = Progress | Preview | Output | Log | Report


class Engine(Protocol):
    """Turns jobs into images."""

    name: str
    capacity: int  # jobs it will run at once

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    @property
    def trouble(self) -> str | None:
        """Why it cannot take work just now, in one sentence; None when it can."""
        ...

    def run(self, job: Job) -> AsyncGenerator[EngineUpdate, None]:
        """Yield updates until the job is done; raise EngineError if it cannot be.

        Raise EngineLost when the device went away and the job may run again.
        Closing the generator cancels the job: nothing of it still runs once aclose() returns.
        """
        ...

    def estimate(self, request: ImageRequest) -> float | None:
        """Seconds of device time this request would take alone, or None when unknown."""
        ...


# --- stores -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """A caller's own name for a request: the same name and body give the same prediction."""

    key: str
    body_hash: str  # SHA-256 of what was asked, hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which predictions to list, newest first."""

    key_id: str | None = None  # None: of every key
    model_names: tuple[str, ...] = ()  # as the callers spelled them
    statuses: tuple[PredictionStatus, ...] = ()
    dialect: str | None = None
    created_after: datetime | None = None  # inclusive
    created_before: datetime | None = None  # exclusive
    cursor: tuple[datetime, str] | None = None  # (created_at, id) of the last one seen
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a worker hears when it renews."""

    cancel_requested: bool


class PredictionStore(Protocol):
    """Predictions and their events, kept safe. Every write is one transaction."""

    async def add(
        self,
        prediction: Prediction,
        event: Event,
        deliveries: Sequence[Delivery] = (),
        idempotency: Idempotency | None = None,
        queue_max: int = 0,
        concurrency_max: int = 0,
    ) -> Prediction:
        """Store it and its event, durably; return it.

        With `idempotency`: an earlier prediction of the same key and name is returned instead;
        another body under the same name raises Conflict. `queue_max` (0: none) bounds queued
        predictions: QueueFull. `concurrency_max` bounds unfinished ones of its key: RateLimited.
        """
        ...

    async def get(self, prediction_id: str) -> Prediction: ...  # NotFound
    async def page(self, query: Query) -> Sequence[Prediction]: ...
    async def count(self, query: Query) -> int: ...

    async def claim(
        self, engine: str, *, owner: str, at: datetime, lease_until: datetime
    ) -> tuple[Prediction, Event] | None:
        """Start the queued prediction of `engine` that is next (priority, then age), or None.

        Its deliveries of kind start are planned in the same transaction.
        """
        ...

    async def renew(self, prediction: Prediction, *, owner: str, lease_until: datetime) -> Lease:
        """Prolong the lease, saving `logs` and `progress`; Conflict when it was lost."""
        ...

    async def move(
        self,
        before: Prediction,
        after: Prediction,
        event: Event,
        deliveries: Sequence[Delivery] = (),
    ) -> Event:
        """Save `after` and its event; Conflict if status or attempt are no longer `before`'s."""
        ...

    async def append(self, event: Event, *, attempt: int) -> Event:
        """Store a durable event; returns it numbered. Conflict unless this very start runs."""
        ...

    async def events(self, prediction_id: str, after: int = 0) -> Sequence[Event]: ...

    async def expired(self, at: datetime) -> Sequence[Prediction]:
        """Running predictions whose lease ran out before `at`."""
        ...

    async def overdue(self, at: datetime) -> Sequence[Prediction]:
        """Queued and running predictions whose deadline has passed."""
        ...

    async def ask_cancel(self, prediction_id: str) -> Prediction:
        """Raise the flag on a running prediction; returns it as it is now."""
        ...

    async def queue_position(self, prediction: Prediction) -> int:
        """How many queued predictions of its engine go before it; a thousand stands for more."""
        ...

    async def delete(self, prediction_id: str) -> Sequence[BlobRef]:
        """Forget a finished prediction; returns the blobs that nothing refers to any more."""
        ...

    async def strip(self, finished_before: datetime, limit: int = 100) -> Sequence[BlobRef]:
        """Drop outputs, logs and input of old finished predictions, `limit` at a time; returns
        blobs that nothing refers to any more. None: no prediction is left that is so old."""
        ...

    async def purge(self, created_before: datetime, limit: int = 100) -> int:
        """Forget old finished predictions whole; returns how many."""
        ...


class DeliveryStore(Protocol):
    """The outbox of webhook messages."""

    async def claim_due(
        self, at: datetime, lease_until: datetime, limit: int
    ) -> Sequence[Delivery]:
        """Pending deliveries whose time has come; their next_at moves to `lease_until`."""
        ...

    async def settle(self, held: Delivery, after: Delivery) -> bool:
        """Save the result of a try: sent, put off, or given up.

        `held`: as it was claimed. False, and nothing is saved, when it is no longer so: another
        took it up after its lease, or it is gone.
        """
        ...

    async def get(self, delivery_id: str) -> Delivery: ...  # NotFound

    async def page(
        self,
        *,
        state: DeliveryState | None = None,
        prediction_id: str | None = None,
        limit: int = 100,
    ) -> Sequence[Delivery]: ...

    async def next_due(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What nobody has taken up yet, on all servers of a database."""

    queued: Mapping[str, int]  # predictions, by engine
    webhooks: int  # messages to send, now or later


class KeyStore(Protocol):
    """API keys, by hash."""

    async def add(self, key: ApiKey) -> None: ...
    async def find(self, hash_: str) -> ApiKey | None: ...
    async def list(self) -> Sequence[ApiKey]: ...
    async def revoke(self, key_id: str, at: datetime) -> ApiKey: ...  # id, name or prefix; NotFound
    async def touch(self, key_id: str, at: datetime) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file that a caller uploaded."""

    id: str
    key_id: str | None
    blob: BlobRef
    name: str
    created_at: datetime
    expires_at: datetime
    md5: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict)


class FileStore(Protocol):
    """Uploaded files, by id."""

    async def add(self, file: StoredFile) -> None: ...
    async def get(self, file_id: str) -> StoredFile: ...  # NotFound, also when expired
    async def page(
        self, key_id: str | None, cursor: tuple[datetime, str] | None = None, limit: int = 100
    ) -> Sequence[StoredFile]: ...
    async def delete(self, file_id: str) -> BlobRef | None: ...  # the blob, if nothing else uses it
    async def expired(self, at: datetime, limit: int = 100) -> Sequence[StoredFile]: ...


class BlobStore(Protocol):
    """Bytes under a key."""

    async def put(self, key: str, data: bytes, mime: str) -> BlobRef:
        """Store `data` durably under `key`, replacing what was there."""
        ...

    async def get(self, key: str) -> bytes: ...  # NotFound

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes start..end (exclusive). NotFound."""
        ...

    async def size(self, key: str) -> int: ...  # NotFound
    async def delete(self, key: str) -> None: ...  # no error when it is gone already


# --- pictures -----------------------------------------------------------------------------------


class Intake(Protocol):
    """Brings input pictures in: checked, oriented, stored."""

    async def take(self, data: bytes, field_name: str) -> ImageInput:
        """Sniff, check and store inline bytes; InvalidRequest or TooLarge naming the field."""
        ...

    async def take_text(self, text: str, field_name: str) -> ImageInput:
        """The same for a data URI or bare base64."""
        ...

    async def check_url(self, url: str, field_name: str) -> None:
        """Refuse a URL that can be refused without the network; InputUnreachable naming it."""
        ...

    async def fetch(self, url: str) -> EncodedImage:
        """Fetch a picture through the address guard; InputUnreachable or InvalidRequest."""
        ...

    async def load(self, image: ImageInput) -> EncodedImage:
        """The bytes behind an input: from the store, or fetched."""
        ...
