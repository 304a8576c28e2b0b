"""What every file store promises."""

import pytest

from fluxserve.core.errors import NotFound
from fluxserve.core.ids import new_id
from fluxserve.core.ports import FileStore
from tests.contracts.conftest import Clock
from tests.contracts.material import after, stored_file


async def test_a_file_comes_back_the_same(files: FileStore) -> None:
    one = stored_file(name="füchse \ud83d.png", md5="ab", metadata={"a": [1, None]}, key_id=None)
    await files.add(one)
    assert await files.get(one.id) == one


async def test_a_file_is_not_found_once_it_has_expired(files: FileStore, clock: Clock) -> None:
    one = stored_file(expires_at=after(10))
    await files.add(one)
    clock.now = after(9)
    assert await files.get(one.id) == one
    clock.now = after(10)
    with pytest.raises(NotFound):
        await files.get(one.id)
    assert await files.page("mine") == []
    assert await files.expired(after(10)) == [one]


async def test_an_unknown_file_is_not_found(files: FileStore) -> None:
    with pytest.raises(NotFound):
        await files.get(new_id())
    with pytest.raises(NotFound):
        await files.delete(new_id())


async def test_pages_hold_the_files_of_one_key_newest_first(files: FileStore) -> None:
    mine = [stored_file(created_at=after(n // 2)) for n in range(5)]
    yours = stored_file(key_id="yours", created_at=after(1))
    for one in (*mine, yours):
        await files.add(one)
    expected = sorted(mine, key=lambda one: (one.created_at, one.id), reverse=True)
    first = await files.page("mine", limit=2)
    rest = await files.page("mine", cursor=(first[-1].created_at, first[-1].id))
    assert [*first, *rest] == expected
    assert len(await files.page(None)) == 6


async def test_the_blob_is_handed_out_with_its_last_file(files: FileStore) -> None:
    one, other = stored_file("inputs/a"), stored_file("inputs/a")
    await files.add(one)
    await files.add(other)
    assert await files.delete(one.id) is None
    assert await files.delete(other.id) == other.blob


async def test_expired_files_come_oldest_first_and_not_all_at_once(files: FileStore) -> None:
    late, early = stored_file(expires_at=after(2)), stored_file(expires_at=after(1))
    await files.add(late)
    await files.add(early)
    assert await files.expired(after(5), limit=1) == [early]
    assert await files.expired(after(1)) == [early]
