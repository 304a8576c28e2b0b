"""Several servers on one PostgreSQL: they share the work, and none of it twice."""

import asyncio
import io
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Text, bindparam, func, select

from fluxserve.core.errors import InvalidRequest, RateLimited, StartupError, Unavailable
from fluxserve.core.ports import Idempotency, Query
from fluxserve.storage import schema
from fluxserve.storage.database import Statement, Transition
from fluxserve.storage.keys import SqlKeyStore
from fluxserve.storage.postgres import PostgresDatabase
from fluxserve.storage.predictions import SqlPredictionStore
from fluxserve.storage.schema import upgrade
from fluxserve.storage.transitions import GET
from tests.contracts.material import NOW, after, event, prediction

SCHEMA = "fluxserve_test"

SHAPE = """
    SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns
    WHERE table_schema = $1 ORDER BY 1, 2
"""
INDEXES = (
    "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = $1 ORDER BY 1, 2"
)


@pytest.fixture
def url(postgresql: str) -> str:
    """A database of which only one schema is seen."""
    return f"{postgresql}?search_path={SCHEMA}"


@pytest.fixture
async def connection(postgresql: str) -> AsyncIterator[asyncpg.Connection]:
    """Beside the servers, on a schema that is empty at the start."""
    opened = await asyncpg.connect(postgresql)
    await opened.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}")
    await opened.execute(f"SET search_path = {SCHEMA}")
    yield opened
    await opened.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    await opened.close()


@pytest.fixture
async def servers(
    connection: asyncpg.Connection, url: str
) -> AsyncIterator[list[SqlPredictionStore]]:
    databases = [PostgresDatabase(url, connections_max=4) for _ in range(3)]
    await asyncio.gather(*(database.start() for database in databases))
    yield [SqlPredictionStore(database) for database in databases]
    for database in databases:
        await database.stop()


async def shape(connection: asyncpg.Connection) -> list[tuple[object, ...]]:
    rows = [*await connection.fetch(SHAPE, SCHEMA), *await connection.fetch(INDEXES, SCHEMA)]
    return [tuple(row) for row in rows]


async def test_servers_that_start_together_make_one_schema(
    servers: list[SqlPredictionStore], connection: asyncpg.Connection
) -> None:
    assert await connection.fetchval("SELECT count(*) FROM alembic_version") == 1


async def test_servers_never_claim_the_same_prediction(servers: list[SqlPredictionStore]) -> None:
    for _ in range(30):
        one = prediction()
        await servers[0].add(one, event(one))

    async def work(store: SqlPredictionStore) -> list[str]:
        ids = []
        while claimed := await store.claim("local", owner="w", at=NOW, lease_until=after(9)):
            ids.append(claimed[0].id)
        return ids

    claimed = await asyncio.gather(*(work(store) for store in servers for _ in range(2)))
    ids = [id_ for some in claimed for id_ in some]
    assert len(ids) == len(set(ids)) == 30


async def test_servers_agree_on_one_prediction_for_one_name(
    servers: list[SqlPredictionStore],
) -> None:
    name = Idempotency(key="order-1", body_hash="aa")

    async def ask(store: SqlPredictionStore) -> str:
        one = prediction(key_id="mine")
        return (await store.add(one, event(one), idempotency=name)).id

    assert len(set(await asyncio.gather(*(ask(store) for store in servers * 4)))) == 1


async def test_servers_keep_a_keys_limit_together(servers: list[SqlPredictionStore]) -> None:
    async def ask(store: SqlPredictionStore) -> None:
        one = prediction(key_id="mine")
        await store.add(one, event(one), concurrency_max=3)

    asked = await asyncio.gather(*(ask(store) for store in servers * 4), return_exceptions=True)
    assert asked.count(None) == 3
    assert all(isinstance(answer, RateLimited) for answer in asked if answer is not None)


async def test_a_new_database_and_a_migrated_one_have_the_same_shape(
    connection: asyncpg.Connection,
    url: str,
) -> None:
    database = PostgresDatabase(url)
    await database.start()
    await database.stop()
    new = await shape(connection)
    await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}")
    script = io.StringIO()
    upgrade("postgresql", into=script)
    await connection.execute(script.getvalue())
    migrated = await shape(connection)
    assert [row for row in new if row[0] != "alembic_version"] == [
        row for row in migrated if row[0] != "alembic_version"
    ]
    assert len(new) > 100


LATER = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    op.add_column("node", sa.Column("place", sa.Text()))
"""


async def test_an_older_database_is_migrated(
    servers: list[SqlPredictionStore],
    connection: asyncpg.Connection,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(schema.MIGRATIONS, tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / "0002_later.py").write_text(LATER)
    monkeypatch.setattr(schema, "MIGRATIONS", tmp_path / "migrations")
    monkeypatch.setattr(schema, "REVISION", "0002")
    database = PostgresDatabase(url)
    await database.start()
    await database.stop()
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == "0002"
    assert "place" in {row[1] for row in await shape(connection)}


async def test_a_database_of_a_newer_build_is_refused(
    connection: asyncpg.Connection, url: str
) -> None:
    await connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    await connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    with pytest.raises(StartupError, match="9999"):
        await PostgresDatabase(url).start()


SLEEP = Statement(select(func.pg_sleep(60)))
END_SLEEPERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE wait_event = 'PgSleep' AND datname = current_database()
"""


def sleep() -> Transition[None]:
    yield SLEEP({})


@pytest.mark.parametrize("how", ["run", "read", "scan"])
async def test_a_lost_connection_is_told_and_replaced(
    connection: asyncpg.Connection, url: str, how: str
) -> None:
    database = PostgresDatabase(url, connections_max=1)
    await database.start()
    asleep = asyncio.ensure_future(getattr(database, how)(sleep()))
    while not await connection.fetch(END_SLEEPERS):
        pass
    with pytest.raises(Unavailable, match="the database does not answer"):
        await asleep
    one = prediction()
    assert await SqlPredictionStore(database).add(one, event(one)) == one
    await database.stop()


RAISE = """
    CREATE FUNCTION trouble(code text) RETURNS void LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = code; END $$
"""
TROUBLE = Statement(select(func.trouble(bindparam("code", type_=Text))))


def trouble(code: str) -> Transition[None]:
    yield TROUBLE({"code": code})


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("57P01", id="it is stopped"),
        pytest.param("57P03", id="it starts"),
        pytest.param("57014", id="it gave up the statement"),
        pytest.param("53300", id="too many connections"),
        pytest.param("53100", id="its disk is full"),
        pytest.param("40P01", id="a deadlock"),
        pytest.param("25006", id="a standby that only reads"),
    ],
)
async def test_a_server_in_trouble_is_unavailable_and_no_error_of_ours(
    servers: list[SqlPredictionStore], connection: asyncpg.Connection, code: str
) -> None:
    await connection.execute(RAISE)
    database = servers[0]._database
    for work in (database.run(trouble(code)), database.read(trouble(code))):
        with pytest.raises(Unavailable, match="the database does not answer"):
            await work
    with pytest.raises(Unavailable, match="the database does not answer"):
        await database.fetch(TROUBLE({"code": code}))


async def test_text_that_the_database_cannot_hold_is_the_callers_fault(
    servers: list[SqlPredictionStore],
) -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        await servers[0].page(Query(model_names=("a\0b",)))
    with pytest.raises(InvalidRequest, match="NUL"):
        await SqlKeyStore(servers[0]._database).revoke("a\0b", NOW)
    with pytest.raises(InvalidRequest, match="NUL"):
        await servers[0]._database.fetch(GET({"prediction_id": "a\0b"}))
