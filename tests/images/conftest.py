"""A guarded client for which 127.0.0.1 is open and the rest of loopback is private."""

from collections.abc import AsyncIterator

import pytest

from fluxserve.images.guard import GuardedClient, Limits
from tests.images.material import LOOPBACK


@pytest.fixture
async def guard() -> AsyncIterator[GuardedClient]:
    client = GuardedClient(LOOPBACK, Limits(total_s=5.0, size_max_bytes=100_000))
    yield client
    await client.aclose()
