"""The WaveSpeed exchanges, against a whole server."""

from pathlib import Path

import httpx
import pytest

from tests.dialects.exchange import files_in, play
from tests.dialects.served import png

FILES = files_in(Path(__file__).parent)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_an_exchange_goes_as_written(path: Path, client: httpx.AsyncClient) -> None:
    await play(path, client, {"picture": png(320, 256)})
