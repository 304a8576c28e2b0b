"""From a URL in the settings to a database."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from fluxserve.core.errors import StartupError
from fluxserve.storage.sqlite import SqliteDatabase


def open_database(url: str) -> SqliteDatabase:
    """sqlite:///RELATIVE, sqlite:////ABSOLUTE, or sqlite:// for memory. Call `start` next."""
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc or parts.query:
        raise StartupError(f"database.url: sqlite:///PATH, not {url}")
    path = unquote(parts.path).removeprefix("/")
    return SqliteDatabase(Path(path).absolute() if path else None)
