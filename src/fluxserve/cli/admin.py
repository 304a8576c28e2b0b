"""Administration beside a running server, or on its files when nobody holds them."""

import json
from pathlib import Path
from typing import Any

from fluxserve import settings as setting
from fluxserve.cli.client import Client, pinned
from fluxserve.core.errors import StartupError
from fluxserve.storage.lock import is_held

LOCK = "fluxserve.lock"
NOTE = "server.json"  # where a running server writes its address


def administer(
    method: str,
    path: str,
    body: dict[str, Any] | None,
    *,
    data_dir: str | None,
    config: str | None,
    asks_upstreams: bool = True,
) -> Any:
    """One call of the native API with the admin token of the data directory.

    When no server holds the directory, one without engines is started for this call alone. Where
    the answer says nothing of upstreams it is started without them, for it may be that their keys
    are known to the server's own environment only.
    """
    flags = {"data_dir": data_dir} if data_dir else {}
    settings = setting.load(flags, config=config)
    if is_held(settings.data / LOCK):
        return _beside(settings.data, method, path, body)
    if not asks_upstreams:
        settings = settings.model_copy(update={"upstream": (), "route": ()})
    return _alone(settings, method, path, body)


def _beside(data: Path, method: str, path: str, body: dict[str, Any] | None) -> Any:
    try:
        note = json.loads((data / NOTE).read_text())
        if note["pid"] != int((data / LOCK).read_text()):
            raise ValueError("left by a server that was killed: somebody else may listen there now")
        token = (data / "admin.token").read_text().strip()
        certificate = note.get("verify")
        trust = pinned(certificate) if isinstance(certificate, str) else None
    except (OSError, ValueError, KeyError):
        text = f"a server holds {data} but has not said where it listens: try again in a moment"
        raise StartupError(text) from None
    client = Client(note["url"], token, trust=trust)
    try:
        return client.call(method, path, body)
    finally:
        client.close()


def _alone(settings: setting.Settings, method: str, path: str, body: dict[str, Any] | None) -> Any:
    from fluxserve.serving import once

    return once(settings, method, path, body)
