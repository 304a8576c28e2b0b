"""From a URL in the settings to a database."""

from pathlib import Path

from fluxserve.core.errors import StartupError
from fluxserve.storage.database import Database
from fluxserve.storage.sqlite import SqliteDatabase

SQLITE = "sqlite://"
POSTGRES = ("postgresql://", "postgres://")


def open_database(url: str) -> Database:
    """sqlite:///RELATIVE, sqlite:////ABSOLUTE, sqlite:// for memory, or postgresql://...

    Call `start` next.
    """
    if is_shared(url):
        return _open_postgres(url)
    rest = url.removeprefix(SQLITE)
    if rest == url or "?" in rest or (rest and not rest.startswith("/")):
        scheme, colon, _ = url.partition(":")  # what follows may hold a password
        said = f"{scheme}:..." if colon else scheme
        raise StartupError(f"database.url: sqlite:///PATH or postgresql://..., not {said}")
    path = rest.removeprefix("/")
    return SqliteDatabase(Path(path).absolute() if path else None)


def is_shared(url: str) -> bool:
    """Whether several servers may work on this database at once."""
    return url.startswith(POSTGRES)


def _open_postgres(url: str) -> Database:
    try:
        from fluxserve.storage.postgres import PostgresDatabase
    except ImportError as error:
        raise StartupError(
            "database.url names PostgreSQL: install fluxserve[postgres] for its driver"
        ) from error
    return PostgresDatabase(url)
