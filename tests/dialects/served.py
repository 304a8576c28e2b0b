"""A whole server in this process, on the simulator, for tests of dialects."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from fluxserve.app import House
from fluxserve.asgi import create_app
from fluxserve.settings import load

ORIGIN = "http://flux.test"


@asynccontextmanager
async def house_on(folder: Path, flags: Mapping[str, Any] | None = None) -> AsyncIterator[House]:
    """A started house whose every model is the simulator, quick by default."""
    simulator = {"enabled": True, "seconds": 0.05, "steps": 5}
    merged = {"data_dir": str(folder), **(flags or {})}
    merged["simulator"] = {**simulator, **dict(merged.get("simulator", {}))}
    house = House(load(merged, environ={}))
    await house.start()
    try:
        yield house
    finally:
        await house.stop()


def client_of(house: House, key: str = "", base: str = ORIGIN) -> httpx.AsyncClient:
    """A client of the server; whatever a handler lets slip is answered as the server would."""
    transport = httpx.ASGITransport(create_app(house), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=transport, base_url=base, headers=headers, timeout=30)


def png(
    width: int = 64, height: int = 64, *, mode: str = "RGB", colour: tuple[int, ...] = (200, 30, 40)
) -> bytes:
    """A plain picture file."""
    out = io.BytesIO()
    Image.new(mode, (width, height), colour).save(out, "PNG")
    return out.getvalue()


def size_of(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return (image.width, image.height)


def format_of(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return str(image.format)
