"""Who is let in: nobody without a key, once there was one."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from fluxserve.core.access import OPEN_CALLER
from fluxserve.core.errors import Unauthenticated
from fluxserve.core.keyring import KeyRing
from fluxserve.storage.keys import SqlKeyStore
from fluxserve.storage.opening import open_database

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
async def ring() -> AsyncIterator[KeyRing]:
    database = open_database("sqlite://")
    await database.start()
    yield KeyRing(SqlKeyStore(database), clock=lambda: NOW, is_open=True)
    await database.stop()


async def test_an_open_server_closes_with_its_first_key(ring: KeyRing) -> None:
    assert await ring.caller(None) is OPEN_CALLER
    key, secret = await ring.create(name="laptop")
    assert (await ring.caller(secret)).key_id == key.id
    with pytest.raises(Unauthenticated):
        await ring.caller(None)


async def test_whose_key_was_revoked_is_not_let_in_as_the_owner_of_an_open_server(
    ring: KeyRing,
) -> None:
    _, secret = await ring.create(name="leaked")
    await ring.revoke("leaked")
    for shown in (secret, None):
        with pytest.raises(Unauthenticated):
            await ring.caller(shown)
