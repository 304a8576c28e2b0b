"""How much memory does one large inline picture take on its way in?

    python -m bench.inline [--megabytes 8]

The whole application is called in this process, once per dialect, with one base64 picture of noise;
tracemalloc gives the peak of Python's own allocations during the call, over the picture's size.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import tempfile
import tracemalloc
from collections.abc import MutableMapping
from typing import Any

from PIL import Image

from fluxserve import settings as setting
from fluxserve.app import House
from fluxserve.asgi import create_app

TARGET = 3.0
PIECE = 65_536  # bytes of a body as a socket gives them


def picture(megabytes: float) -> bytes:
    side = int((megabytes * 1e6 / 3) ** 0.5)
    image = Image.frombytes("RGB", (side, side), os.urandom(side * side * 3))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()


def calls(uri: str) -> list[tuple[str, str, dict[str, Any]]]:
    kontext = "/v1/models/black-forest-labs/flux-kontext-dev/predictions"
    return [
        ("native", "/fluxserve/v1/predictions", {"model": "flux-kontext-dev", "images": [uri]}),
        ("replicate", kontext, {"input": {"prompt": "x", "input_image": uri}}),
        ("bfl", "/v1/flux-kontext-pro", {"input_image": uri}),
        ("wavespeed", "/api/v3/wavespeed-ai/flux-kontext-dev", {"image": uri}),
    ]


async def post(app: Any, path: str, pieces: list[bytes]) -> int:
    """The status of a POST whose body comes in `pieces`, which is emptied."""
    size = sum(len(piece) for piece in pieces)
    answered: list[int] = []

    async def receive() -> MutableMapping[str, Any]:
        if pieces:
            body = pieces.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(pieces)}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    headers = [(b"host", b"bench"), (b"content-length", str(size).encode())]
    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        },
        receive,
        send,
    )
    return answered[0]


async def measure(megabytes: float, folder: str) -> dict[str, float]:
    raw = picture(megabytes)
    uri = "data:image/png;base64," + base64.b64encode(raw).decode()
    flags = {"data_dir": folder, "simulator": {"enabled": True, "seconds": 0.0}}
    house = House(setting.load(flags, environ={}))
    await house.start()
    app = create_app(house)
    found: dict[str, float] = {}
    tracemalloc.start()
    for name, path, body in calls(uri):
        data = json.dumps({"prompt": "x", **body} if name != "replicate" else body).encode()
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        del data
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        status = await post(app, path, pieces)
        assert status in (200, 201), f"{name} answered {status}"
        found[name] = round((tracemalloc.get_traced_memory()[1] - before) / len(raw), 2)
    await house.stop()
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=float, default=8.0)
    megabytes = options.parse_args().megabytes
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(megabytes, folder))
    print(f"one inline picture of {megabytes:g} MB, peak over its size, target {TARGET:g}")
    for name, times in found.items():
        print(f"  {name:10} {times:.2f}")
    print(json.dumps({"bench": "inline", "megabytes": megabytes, **found}))


if __name__ == "__main__":
    main()
