"""The database for several servers: PostgreSQL through asyncpg, each transition one transaction.

    run ──> a connection of the pool: BEGIN, the transition's statements, COMMIT
    read, scan ──> a connection of the pool, no transaction

The guards in the statements do the locking: what two servers move at once, one of them moves, and
SKIP LOCKED lets two that claim pass each other. Start-up takes an advisory lock, so that one
server migrates and the others wait.
"""

import asyncio
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import asyncpg

from fluxserve.core.errors import InvalidRequest, StartupError, Unavailable
from fluxserve.storage import schema
from fluxserve.storage.database import POSTGRESQL, Call, Rows, Transition

T = TypeVar("T")

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 10
STATEMENTS_CACHED = 256
COMMAND_TIMEOUT_S = 30.0
MIGRATION_LOCK = 7_021_306_001  # any number that nobody else takes

# The server's and the network's, gone when it is tried again later.
TROUBLES = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,  # stopped, starting, or the statement was given up
    asyncpg.InsufficientResourcesError,  # its disk, its memory, its connections
    asyncpg.TransactionRollbackError,  # a deadlock
    asyncpg.ReadOnlySQLTransactionError,  # a standby
    asyncpg.PostgresSystemError,
    OSError,
    TimeoutError,
)


class PostgresDatabase:
    """`Database` on a PostgreSQL server that other fluxserve servers may share."""

    def __init__(self, url: str, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self._url = url
        self._connections_max = connections_max
        self._pool: Any = None

    async def start(self) -> None:
        try:
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=1,
                max_size=self._connections_max,
                statement_cache_size=STATEMENTS_CACHED,
                command_timeout=COMMAND_TIMEOUT_S,
            )
            async with self._pool.acquire() as connection:
                await _bring_up_to_date(connection)
        except (asyncpg.PostgresError, ValueError, *TROUBLES) as error:
            await self.stop()
            raise StartupError(
                f"the database of database.url does not let us in ({_reason(error)}): "
                "check that it runs, and its host, name, user and password"
            ) from error
        except StartupError:
            await self.stop()
            raise

    async def stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def watch(self, changed: Callable[[str], None]) -> bool:
        return False

    async def run(self, transition: Transition[T]) -> T:
        with _explained():
            async with self._acquire() as connection, connection.transaction():
                return await _drive(connection, transition)

    async def fetch(self, call: Call) -> Rows:
        sql, pick, _, _ = call.statement.postgresql
        with _explained():
            async with self._acquire() as connection:
                records: Sequence[Any] = await connection.fetch(sql, *pick(call.params))
        return [tuple(record) for record in records]

    async def read(self, transition: Transition[T]) -> T:
        with _explained():
            async with self._acquire() as connection:
                return await _drive(connection, transition)

    async def scan(self, transition: Transition[T]) -> T:
        return await self.read(transition)

    def _acquire(self) -> Any:
        if self._pool is None:
            raise Unavailable("the database is closed")
        return self._pool.acquire()


@contextmanager
def _explained() -> Iterator[None]:
    """The database's own troubles in words for the caller; everything else as it is."""
    try:
        yield
    except TROUBLES as error:
        raise Unavailable(f"the database does not answer: {_reason(error)}") from error
    except asyncpg.CharacterNotInRepertoireError as error:
        raise InvalidRequest("the database holds no text with a NUL character") from error


async def _drive(connection: Any, transition: Transition[T]) -> T:
    """Feed a transition with rows until it returns; raises what it raises."""
    try:
        statement, params = next(transition)
        while True:
            sql, pick, _, _ = statement.postgresql
            records: Sequence[Any] = await connection.fetch(sql, *pick(params))
            statement, params = transition.send([tuple(record) for record in records])
    except StopIteration as end:
        return cast(T, end.value)
    finally:
        transition.close()


async def _bring_up_to_date(connection: Any) -> None:
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        table = await connection.fetchval("SELECT to_regclass('alembic_version')::text")
        if table is None:
            for statement in schema.ddl(POSTGRESQL):
                await connection.execute(statement)
            return
        revision = await connection.fetchval("SELECT version_num FROM alembic_version") or ""
        schema.check_revision(revision)
        if revision != schema.REVISION:
            log.info("migrating the database from %s to %s", revision, schema.REVISION)
            script = io.StringIO()
            await asyncio.to_thread(schema.upgrade, "postgresql", since=revision, into=script)
            await connection.execute(script.getvalue())


def _reason(error: BaseException) -> str:
    """One short line; the URL with its password is not in it."""
    return str(error).partition("\n")[0] or type(error).__name__
