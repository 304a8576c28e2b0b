"""Uploaded files in SQL: `FileStore` over a `Database`. Their bytes are blobs."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, tuple_

from fluxserve.core.errors import NotFound
from fluxserve.core.ports import StoredFile
from fluxserve.core.request import BlobRef
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Database, Param, Row, Statement, Transition
from fluxserve.storage.transitions import drop_uses, use_blobs

F = tables.file.c

COLUMNS = (F.id, F.key_id, F.created_at, F.expires_at, F.info)

INSERT = Statement(insert(tables.file))
GET = Statement(select(*COLUMNS).where(F.id == bindparam("file_id")))
DELETE = Statement(delete(tables.file).where(F.id == bindparam("file_id")).returning(*COLUMNS))
EXPIRED = Statement(
    select(*COLUMNS)
    .where(F.expires_at <= bindparam("at"))
    .order_by(F.expires_at)
    .limit(bindparam("most"))
)


class SqlFileStore:
    """`FileStore` on either database; `clock` tells when a file has expired."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def add(self, file: StoredFile) -> None:
        await self._database.run(_add(file))

    async def get(self, file_id: str) -> StoredFile:
        return await self._database.read(_get(file_id, self._clock()))

    async def page(
        self, key_id: str | None, cursor: tuple[datetime, str] | None = None, limit: int = 100
    ) -> Sequence[StoredFile]:
        """Newest first, expired ones left out; `cursor` is (created_at, id) of the last one seen.

        `key_id` None: of every key.
        """
        return await self._database.scan(_page(key_id, cursor, limit, self._clock()))

    async def delete(self, file_id: str) -> BlobRef | None:
        """NotFound, or the blob that nothing refers to any more."""
        return await self._database.run(_delete(file_id))

    async def expired(self, at: datetime, limit: int = 100) -> Sequence[StoredFile]:
        return await self._database.scan(_expired(at, limit))


def _add(file: StoredFile) -> Transition[None]:
    info: Mapping[str, Any] = {
        "blob": codec.pack_blob(file.blob),
        "name": file.name,
        "md5": file.md5,
        "metadata": file.metadata,
    }
    yield INSERT(
        {
            "id": file.id,
            "key_id": file.key_id or "",
            "created_at": codec.to_micros(file.created_at),
            "expires_at": codec.to_micros(file.expires_at),
            "info": codec.dump(info),
        }
    )
    yield from use_blobs(file.id, (file.blob,))


def _get(file_id: str, at: datetime) -> Transition[StoredFile]:
    rows = yield GET({"file_id": file_id})
    if rows and (file := _decode(rows[0])).expires_at > at:
        return file
    raise NotFound("no such file, or it has expired")


def _page(
    key_id: str | None, cursor: tuple[datetime, str] | None, limit: int, at: datetime
) -> Transition[Sequence[StoredFile]]:
    params: dict[str, Param] = {"most": limit, "at": codec.to_micros(at)}
    if key_id is not None:
        params["key"] = key_id
    if cursor is not None:
        params["seen_at"], params["seen_id"] = codec.to_micros(cursor[0]), cursor[1]
    rows = yield _page_statement(key_id is not None, cursor is not None)(params)
    return [_decode(row) for row in rows]


@lru_cache(maxsize=4)
def _page_statement(of_key: bool, goes_on: bool) -> Statement:
    chosen = select(*COLUMNS).where(F.expires_at > bindparam("at"))
    if of_key:
        chosen = chosen.where(F.key_id == bindparam("key"))
    if goes_on:
        seen = tuple_(bindparam("seen_at"), bindparam("seen_id"))
        chosen = chosen.where(tuple_(F.created_at, F.id) < seen)
    return Statement(chosen.order_by(F.created_at.desc(), F.id.desc()).limit(bindparam("most")))


def _delete(file_id: str) -> Transition[BlobRef | None]:
    rows = yield DELETE({"file_id": file_id})
    if not rows:
        raise NotFound("no such file")
    unused = yield from drop_uses(file_id, (_decode(rows[0]).blob,))
    return unused[0] if unused else None


def _expired(at: datetime, limit: int) -> Transition[Sequence[StoredFile]]:
    rows = yield EXPIRED({"at": codec.to_micros(at), "most": limit})
    return [_decode(row) for row in rows]


def _decode(row: Row) -> StoredFile:
    id_, key_id, created_at, expires_at, info = row
    said = codec.load(info)
    return StoredFile(
        id=id_,
        key_id=key_id or None,
        blob=codec.unpack_blob(said["blob"]),
        name=said.get("name", ""),
        created_at=codec.to_time(created_at),
        expires_at=codec.to_time(expires_at),
        md5=said.get("md5", ""),
        metadata=said.get("metadata", {}),
    )
