"""From a URL in the settings to a database."""

from pathlib import Path

from fluxserve.core.errors import StartupError
from fluxserve.storage.sqlite import SqliteDatabase

SQLITE = "sqlite://"


def open_database(url: str) -> SqliteDatabase:
    """sqlite:///RELATIVE, sqlite:////ABSOLUTE, or sqlite:// for memory. Call `start` next."""
    rest = url.removeprefix(SQLITE)
    if rest == url or "?" in rest or (rest and not rest.startswith("/")):
        raise StartupError(f"database.url: sqlite:///PATH, not {url}")
    path = rest.removeprefix("/")
    return SqliteDatabase(Path(path).absolute() if path else None)
