"""The exchanges of this folder, against a whole server."""

import base64
from pathlib import Path

import httpx
import pytest

from fluxserve.app import House
from tests.dialects.exchange import files_in, play
from tests.dialects.served import client_of, png

FILES = files_in(Path(__file__).parent)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_an_exchange_goes_as_written(path: Path, house: House) -> None:
    """`<key>` and `<other>` belong to two callers; `<picture>` is a data URI."""
    picture = "data:image/png;base64," + base64.b64encode(png(96, 64)).decode()
    _, key = await house.keyring.create(name="anna")
    _, other = await house.keyring.create(name="ben")
    async with client_of(house) as client:
        await play(path, client, {"key": key, "other": other, "picture": picture})


async def test_an_open_server_asks_for_no_key(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/account", headers={"Authorization": "Token whatever"})
    assert answer.status_code == 200
