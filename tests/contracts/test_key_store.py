"""What every key store promises."""

from dataclasses import replace
from typing import Any

import pytest

from fluxserve.core.access import ApiKey, hash_secret
from fluxserve.core.errors import Conflict, NotFound
from fluxserve.core.ids import new_id
from fluxserve.core.ports import KeyStore
from tests.contracts.material import NOW, after


def key(secret: str = "fx_one", **more: Any) -> ApiKey:
    plain: dict[str, Any] = {
        "id": new_id(),
        "name": "laptop",
        "prefix": secret[:6],
        "hash": hash_secret(secret),
        "created_at": NOW,
    }
    return ApiKey(**{**plain, **more})


async def test_a_key_is_found_by_the_hash_of_its_secret(keys: KeyStore) -> None:
    full = key(
        "fx_full",
        tenant_id="team",
        is_admin=True,
        models=("tiny", "dev"),
        rate_per_minute=60,
        concurrency_max=4,
        budget_micro=5_000_000,
        expires_at=after(60),
    )
    await keys.add(full)
    await keys.add(key("fx_plain"))
    assert await keys.find(hash_secret("fx_full")) == full
    assert await keys.find(hash_secret("fx_none")) is None


async def test_keys_are_listed_oldest_first(keys: KeyStore) -> None:
    young, old = key("fx_2", created_at=after(1)), key("fx_1")
    await keys.add(young)
    await keys.add(old)
    assert await keys.list() == [old, young]


@pytest.mark.parametrize("called_by", ["id", "name", "prefix"])
async def test_a_key_is_revoked_by_id_name_or_prefix(keys: KeyStore, called_by: str) -> None:
    one, other = key("fx_abc"), key("fx_xyz", name="desktop")
    await keys.add(one)
    await keys.add(other)
    revoked = await keys.revoke(getattr(one, called_by), after(5))
    assert revoked == replace(one, revoked_at=after(5))
    assert await keys.find(one.hash) == revoked
    assert await keys.find(other.hash) == other


async def test_revoking_twice_changes_nothing(keys: KeyStore) -> None:
    one = key()
    await keys.add(one)
    revoked = await keys.revoke(one.id, after(5))
    assert await keys.revoke(one.id, after(9)) == revoked
    assert await keys.list() == [revoked]


async def test_a_name_that_several_valid_keys_have_is_refused(keys: KeyStore) -> None:
    one, other = key("fx_1"), key("fx_2")
    await keys.add(one)
    await keys.add(other)
    with pytest.raises(Conflict):
        await keys.revoke("laptop", NOW)
    await keys.revoke(one.id, NOW)
    assert (await keys.revoke("laptop", NOW)).id == other.id


async def test_revoking_an_unknown_key_is_not_found(keys: KeyStore) -> None:
    with pytest.raises(NotFound):
        await keys.revoke("laptop", NOW)


async def test_the_last_use_is_written_down(keys: KeyStore) -> None:
    one = key()
    await keys.add(one)
    await keys.touch(one.id, after(3))
    assert await keys.find(one.hash) == replace(one, last_used_at=after(3))
