"""Secrets in, callers out: the key check of every request, with a short memory."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from fluxserve.core.access import OPEN_CALLER, PREFIX, ApiKey, Caller, hash_secret, new_secret
from fluxserve.core.errors import Unauthenticated
from fluxserve.core.ids import new_id
from fluxserve.core.ports import KeyStore

MEMORY_S = 3.0  # a revoked key is refused after this long at the latest
MEMORY_MAX = 10_000  # secrets remembered, good and bad
TOUCH_S = 60.0  # last use is written down this often at most


class KeyRing:
    """Knows whether the server is open, and who a secret belongs to."""

    def __init__(
        self,
        store: KeyStore,
        *,
        clock: Callable[[], datetime],
        admin_secret: str = "",
        is_open: bool = False,
    ) -> None:
        self._store = store
        self._clock = clock
        self._admin_hash = hash_secret(admin_secret) if admin_secret else ""
        self._wants_open = is_open
        self._known: dict[str, tuple[float, ApiKey | None]] = {}
        self._touched: dict[str, float] = {}
        self._has_keys: tuple[float, bool] = (-1e9, False)
        self._background: set[asyncio.Task[None]] = set()

    async def is_open(self) -> bool:
        """Whether anybody may ask: allowed by the settings, and no key was ever made.

        Revoking the last key opens nothing: who it was taken from must stay outside.
        """
        if not self._wants_open:
            return False
        read_at, has_keys = self._has_keys
        if time.monotonic() - read_at > MEMORY_S:
            has_keys = bool(await self._store.list())
            self._has_keys = (time.monotonic(), has_keys)
        return not has_keys

    async def caller(self, secret: str | None) -> Caller:
        """Whoever holds `secret`; Unauthenticated for none or a wrong one on a closed server."""
        if secret:
            hash_ = hash_secret(secret)
            if hash_ == self._admin_hash:
                return Caller(key=None, is_admin=True)
            key = await self._find(hash_)
            if key is not None and key.is_valid(self._clock()):
                self._touch(key)
                return Caller(key=key, tenant_id=key.tenant_id, is_admin=key.is_admin)
        if await self.is_open():
            return OPEN_CALLER
        if secret:
            raise Unauthenticated("this API key is not valid here", was_given=True)
        raise Unauthenticated("an API key is required: make one with `fluxserve keys create`")

    async def create(
        self,
        *,
        name: str = "",
        models: Sequence[str] = (),
        rate_per_minute: int = 0,
        concurrency_max: int = 0,
        budget_micro: int = 0,
        expires_in: timedelta | None = None,
        is_admin: bool = False,
    ) -> tuple[ApiKey, str]:
        """A new key and its secret, which is shown this once and never stored."""
        secret = new_secret()
        at = self._clock()
        key = ApiKey(
            id=new_id(),
            name=name,
            prefix=secret[: len(PREFIX) + 6],
            hash=hash_secret(secret),
            created_at=at,
            is_admin=is_admin,
            models=tuple(models),
            rate_per_minute=rate_per_minute,
            concurrency_max=concurrency_max,
            budget_micro=budget_micro,
            expires_at=at + expires_in if expires_in else None,
        )
        await self._store.add(key)
        self._has_keys = (-1e9, False)
        return key, secret

    async def list(self) -> Sequence[ApiKey]:
        return await self._store.list()

    async def revoke(self, key_id: str) -> ApiKey:
        """By id, name or prefix; NotFound. Refused from now on, elsewhere within seconds."""
        key = await self._store.revoke(key_id, self._clock())
        self._known.clear()
        return key

    async def _find(self, hash_: str) -> ApiKey | None:
        now = time.monotonic()
        read_at, key = self._known.get(hash_, (-1e9, None))
        if now - read_at > MEMORY_S:
            key = await self._store.find(hash_)
            if len(self._known) >= MEMORY_MAX:
                self._known.clear()
            self._known[hash_] = (now, key)
        return key

    def _touch(self, key: ApiKey) -> None:
        now = time.monotonic()
        if now - self._touched.get(key.id, -1e9) > TOUCH_S:
            self._touched[key.id] = now
            task = asyncio.ensure_future(self._store.touch(key.id, self._clock()))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
