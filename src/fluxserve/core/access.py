"""Who may ask: keys, what they open, and the caller that a request comes from."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from fluxserve.core.errors import Forbidden

PREFIX = "fx_"  # what a key of ours starts with, so that leak scanners can know it


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as stored: never the secret, only its hash."""

    id: str
    name: str
    prefix: str  # the first characters of the secret, to recognise it in lists
    hash: str  # SHA-256 of the secret, hex; the secret has 160 random bits, so no salt is needed
    created_at: datetime
    tenant_id: str = "default"
    is_admin: bool = False
    models: tuple[str, ...] = ()  # card ids; empty: all
    rate_per_minute: int = 0  # 0: as the settings say
    concurrency_max: int = 0  # predictions queued or running at once; 0: no limit
    budget_micro: int = 0  # millionths of a USD per calendar month; 0: no limit
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def is_valid(self, at: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever stands behind a request. Open servers have one caller: the local user."""

    key: ApiKey | None
    tenant_id: str = "default"
    is_admin: bool = False

    @property
    def key_id(self) -> str | None:
        return self.key.id if self.key else None

    def may_see(self, key_id: str | None) -> bool:
        """Whether a prediction or file made by `key_id` is this caller's to see."""
        return self.is_admin or self.key is None or self.key.id == key_id

    def may_use(self, model: str) -> None:
        """Raise Forbidden when the key does not open the model `model` (a card id)."""
        if self.key and self.key.models and model not in self.key.models:
            raise Forbidden(f"this key may not use the model {model}", field="model")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateState:
    """How much of a caller's rate is left."""

    limit: int  # 0: none
    remaining: int
    reset_s: int


class Limiter(Protocol):
    """Counts requests per caller."""

    async def hit(self, caller: Caller, kind: str) -> RateState:
        """Count one request of `kind` ("create" or "read"); RateLimited when over."""
        ...


OPEN_CALLER = Caller(key=None, is_admin=True)


def new_secret() -> str:
    """A key to hand out, with 160 random bits."""
    return PREFIX + secrets.token_hex(20)


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
