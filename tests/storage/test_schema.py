"""New databases and migrated ones are the same, and a newer one is left alone."""

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, pool

from fluxserve.core.errors import StartupError
from fluxserve.storage import schema
from fluxserve.storage.tables import METADATA


def shape(path: Path) -> dict[str, tuple[list[object], list[str]]]:
    """Columns and indexes of every table, as SQLite sees them."""
    connection = sqlite3.connect(path)
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    found: dict[str, tuple[list[object], list[str]]] = {}
    for (name,) in tables.fetchall():
        columns = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
        indexes = connection.execute(f"PRAGMA index_list({name})").fetchall()
        keys = [
            (*kind, connection.execute(f"PRAGMA index_xinfo('{index}')").fetchall())
            for _, index, *kind in indexes
        ]
        foreign = connection.execute(f"PRAGMA foreign_key_list({name})").fetchall()
        found[name] = (columns, sorted(map(repr, [*keys, *foreign])))
    connection.close()
    return found


def fresh(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    schema.bring_up_to_date(connection, path)
    connection.close()


def test_a_new_database_and_a_migrated_one_have_the_same_shape(tmp_path: Path) -> None:
    fresh(tmp_path / "new.db")
    schema.upgrade(f"sqlite:///{tmp_path}/old.db")
    assert shape(tmp_path / "new.db") == shape(tmp_path / "old.db")


def test_the_migrations_say_what_the_tables_say(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    schema.upgrade(url)
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_the_revision_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.REVISION


def test_a_database_of_a_newer_build_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    fresh(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartupError, match="9999"):
        schema.bring_up_to_date(connection, path)
    connection.close()


def test_an_older_database_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)")
    schema.bring_up_to_date(connection, path)
    assert schema.revision_of(connection) == schema.REVISION
    connection.close()
