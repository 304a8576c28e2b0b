"""Brings a database to the newest schema: at once when it is new, by Alembic when it is old."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from sqlalchemy import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from fluxserve.core.errors import StartupError
from fluxserve.storage.database import SQLITE
from fluxserve.storage.tables import METADATA

REVISION = "0001"  # of tables.py; a test compares it with the newest migration
MIGRATIONS = Path(__file__).parent / "migrations"


def ddl(dialect: Dialect = SQLITE) -> Iterator[str]:
    """The statements that make an empty database one of this revision."""
    for table in METADATA.sorted_tables:
        yield str(CreateTable(table).compile(dialect=dialect))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield str(CreateIndex(index).compile(dialect=dialect))
    yield "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
    yield f"INSERT INTO alembic_version VALUES ('{REVISION}')"


def revision_of(connection: sqlite3.Connection) -> str | None:
    """The revision of a database; None when it is empty, "" before the first migration."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'")
    if found.fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return "" if row is None else str(row[0])


def check_revision(revision: str) -> None:
    """StartupError when a newer build wrote the database."""
    if revision > REVISION:
        raise StartupError(
            f"the database has schema {revision} and this build knows {REVISION}: "
            "run the newer build, or name another database"
        )


def bring_up_to_date(connection: sqlite3.Connection, path: Path | None) -> None:
    """Create or migrate a SQLite database. `path` None: in memory, so always new."""
    revision = revision_of(connection)
    if revision is None:
        connection.execute("BEGIN IMMEDIATE")
        for statement in ddl():
            connection.execute(statement)
        connection.execute("COMMIT")
        return
    check_revision(revision)
    if revision != REVISION:
        upgrade(f"sqlite:///{path}")


def upgrade(url: str, *, since: str = "", into: TextIO | None = None) -> None:
    """Run the migrations that are missing; with `into`, write them down as SQL from `since` on.

    Alembic takes a moment to import, so this is called only when there is something to do.
    """
    from alembic import command
    from alembic.config import Config

    config = Config(output_buffer=into)
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    if into is None:
        command.upgrade(config, "head")
    else:
        command.upgrade(config, f"{since or 'base'}:head", sql=True)
