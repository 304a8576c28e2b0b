"""The fal dialect on a whole server in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fluxserve.app import House
from tests.dialects.served import client_of, house_on


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_on(tmp_path) as house:
        yield house


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(house) as client:
        yield client
