"""A URL is a database, or a sentence that says what would be one."""

import sys
from pathlib import Path

import pytest

from fluxserve.core.errors import StartupError, Unavailable
from fluxserve.storage.opening import open_database
from fluxserve.storage.postgres import PostgresDatabase
from fluxserve.storage.sqlite import SqliteDatabase
from fluxserve.storage.transitions import get


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "sqlite:/a", "sqlite://host/a.db", "sqlite:///a?b=c", "a.db"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(StartupError, match=r"database\.url"):
        open_database(url)


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "sqlite:secret"])
def test_what_may_be_a_password_is_not_told(url: str) -> None:
    with pytest.raises(StartupError) as caught:
        open_database(url)
    assert "secret" not in caught.value.message


async def test_a_path_is_taken_as_it_is_written(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/a%20b #1/store.db")
    await database.start()
    await database.stop()
    assert (tmp_path / "a%20b #1" / "store.db").exists()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_postgresql_has_its_own_driver(scheme: str) -> None:
    assert isinstance(open_database(f"{scheme}://host/name"), PostgresDatabase)
    assert isinstance(open_database("sqlite://"), SqliteDatabase)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "fluxserve.storage.postgres")
    with pytest.raises(StartupError, match=r"fluxserve\[postgres\]"):
        open_database("postgresql://host/name")


async def test_a_server_that_is_not_there_stops_the_start_and_no_secret_is_told() -> None:
    database = open_database("postgresql://user:hidden@127.0.0.1:1/name")
    with pytest.raises(StartupError, match="check that it runs") as caught:
        await database.start()
    assert "hidden" not in caught.value.message
    with pytest.raises(Unavailable):
        await database.read(get("0" * 32))
