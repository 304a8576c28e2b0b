"""API keys in SQL, by hash: `KeyStore` over a `Database`."""

import builtins
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import bindparam, insert, or_, select, update

from fluxserve.core.access import ApiKey
from fluxserve.core.errors import Conflict, NotFound
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Database, Row, Statement, Transition

K = tables.api_key.c

COLUMNS = tuple(tables.api_key.columns)

INSERT = Statement(insert(tables.api_key))
FIND = Statement(select(*COLUMNS).where(K.hash == bindparam("digest")))
LIST = Statement(select(*COLUMNS).order_by(K.created_at, K.id))
CALLED = Statement(
    select(*COLUMNS).where(
        or_(
            K.id == bindparam("called"),
            K.name == bindparam("called"),
            K.prefix == bindparam("called"),
        )
    )
)
REVOKE = Statement(
    update(tables.api_key)
    .where(K.id == bindparam("key_id"), K.revoked_at.is_(None))
    .values(revoked_at=bindparam("at"))
)
TOUCH = Statement(
    update(tables.api_key).where(K.id == bindparam("key_id")).values(last_used_at=bindparam("at"))
)


class SqlKeyStore:
    """`KeyStore` on either database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: ApiKey) -> None:
        await self._database.run(_add(key))

    async def find(self, hash_: str) -> ApiKey | None:
        return await self._database.read(_find(hash_))

    async def list(self) -> Sequence[ApiKey]:
        """Oldest first, revoked ones included."""
        return await self._database.scan(_list())

    async def revoke(self, key_id: str, at: datetime) -> ApiKey:
        """By id, name or prefix; Conflict where several valid keys answer to it."""
        return await self._database.run(_revoke(key_id, at))

    async def touch(self, key_id: str, at: datetime) -> None:
        await self._database.run(_touch(key_id, at))


def _add(key: ApiKey) -> Transition[None]:
    yield INSERT(
        {
            "id": key.id,
            "name": key.name,
            "prefix": key.prefix,
            "hash": key.hash,
            "tenant_id": key.tenant_id,
            "is_admin": int(key.is_admin),
            "limits": codec.dump(
                {
                    "models": key.models,
                    "rate_per_minute": key.rate_per_minute,
                    "concurrency_max": key.concurrency_max,
                    "budget_micro": key.budget_micro,
                }
            ),
            "created_at": codec.to_micros(key.created_at),
            "expires_at": codec.maybe_micros(key.expires_at),
            "revoked_at": codec.maybe_micros(key.revoked_at),
            "last_used_at": codec.maybe_micros(key.last_used_at),
        }
    )


def _find(hash_: str) -> Transition[ApiKey | None]:
    rows = yield FIND({"digest": hash_})
    return _decode(rows[0]) if rows else None


def _list() -> Transition[builtins.list[ApiKey]]:
    rows = yield LIST({})
    return [_decode(row) for row in rows]


def _revoke(called: str, at: datetime) -> Transition[ApiKey]:
    rows = yield CALLED({"called": called})
    keys = [_decode(row) for row in rows]
    if not keys:
        raise NotFound(f"no key has the id, name or prefix {called}")
    valid = [key for key in keys if key.revoked_at is None]
    if len(valid) > 1:
        raise Conflict(f"{len(valid)} keys are called {called}: name one by its id")
    if not valid:
        return keys[0]
    yield REVOKE({"key_id": valid[0].id, "at": codec.to_micros(at)})
    return replace(valid[0], revoked_at=at)


def _touch(key_id: str, at: datetime) -> Transition[None]:
    yield TOUCH({"key_id": key_id, "at": codec.to_micros(at)})


def _decode(row: Row) -> ApiKey:
    (
        id_,
        name,
        prefix,
        hash_,
        tenant_id,
        is_admin,
        limits,
        created_at,
        expires_at,
        revoked_at,
        last_used_at,
    ) = row
    limit = codec.load(limits)
    return ApiKey(
        id=id_,
        name=name,
        prefix=prefix,
        hash=hash_,
        tenant_id=tenant_id,
        is_admin=bool(is_admin),
        models=tuple(limit.get("models", ())),
        rate_per_minute=limit.get("rate_per_minute", 0),
        concurrency_max=limit.get("concurrency_max", 0),
        budget_micro=limit.get("budget_micro", 0),
        created_at=codec.to_time(created_at),
        expires_at=codec.maybe_time(expires_at),
        revoked_at=codec.maybe_time(revoked_at),
        last_used_at=codec.maybe_time(last_used_at),
    )
