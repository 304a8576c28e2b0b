"""A server of our own as a provider, with answers that get lost on the way as the script says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxserve.app import House
from fluxserve.asgi import create_app
from fluxserve.settings import load

from .script import Script, Submit

KEY = "no key is needed on loopback"


class Lossy:
    """Passes everything on, and cuts the connection after submissions that the script names."""

    def __init__(self, app: ASGIApp, script: Script) -> None:
        self.app = app
        self.script = script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_submission = scope["type"] == "http" and scope["method"] == "POST"
        is_submission = is_submission and scope["path"].endswith("/predictions")
        fault = self.script.next().submit if is_submission else Submit.OK
        if fault is Submit.OK:
            await self.app(scope, receive, send)
            return

        async def swallow(message: Message) -> None:
            pass

        if fault.accepts:
            await self.app(scope, receive, swallow)
        scope["drop"]()


@dataclass(slots=True, kw_only=True)
class FakeFluxserve:
    """Our server with the simulator behind it."""

    data_dir: Path
    seconds: float = 0.0  # that a picture takes
    script: Script = field(default_factory=Script)

    def app(self) -> ASGIApp:
        """Serve it with its lifespan on."""
        simulator = {"enabled": True, "seconds": self.seconds, "steps": 2}
        flags = {"data_dir": str(self.data_dir), "simulator": simulator}
        return Lossy(create_app(House(load(flags, environ={}))), self.script)

    def predictions(self, origin: str) -> list[dict[str, Any]]:
        """What it was asked for, newest first."""
        url = f"{origin}/fluxserve/v1/predictions"
        answer = httpx.get(url, params={"limit": 200}, trust_env=False)
        results = answer.raise_for_status().json()["results"]
        assert isinstance(results, list)
        return results
