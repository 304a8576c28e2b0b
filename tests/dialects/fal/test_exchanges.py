"""The fal exchanges, against a whole server."""

import base64
from pathlib import Path

import httpx
import pytest

from tests.dialects.exchange import files_in, play
from tests.dialects.served import png

FILES = files_in(Path(__file__).parent)
PHOTO = "data:image/png;base64," + base64.b64encode(png(320, 256)).decode()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_an_exchange_goes_as_written(path: Path, client: httpx.AsyncClient) -> None:
    await play(path, client, {"photo": PHOTO})
