"""Blobs without a row go; blobs with one, and young ones, stay."""

from datetime import UTC, datetime, timedelta

import pytest

from fluxserve.core.errors import NotFound
from fluxserve.storage.blobs import open_blobs
from fluxserve.storage.files import SqlFileStore
from fluxserve.storage.opening import open_database
from fluxserve.storage.orphans import Orphans
from fluxserve.storage.predictions import SqlPredictionStore
from tests.contracts.material import event, prediction, stored_file

LATER = datetime.now(UTC) + timedelta(days=2)


async def test_only_old_blobs_that_nothing_refers_to_are_deleted() -> None:
    database, blobs = open_database("sqlite://"), open_blobs("memory://")
    await database.start()
    store, files = SqlPredictionStore(database), SqlFileStore(database, lambda: LATER)
    input_ = await blobs.put("inputs/used.png", b"a", "image/png")
    upload = await blobs.put("uploads/used.png", b"a", "image/png")
    await blobs.put("outputs/lost.png", b"a", "image/png")
    one = prediction(input_)
    await store.add(one, event(one))
    await files.add(stored_file(upload.key))
    assert await Orphans(database, blobs, clock=lambda: datetime.now(UTC)).sweep() == 0
    assert await Orphans(database, blobs, clock=lambda: LATER).sweep() == 1
    assert await blobs.get(input_.key) == await blobs.get(upload.key) == b"a"
    with pytest.raises(NotFound):
        await blobs.get("outputs/lost.png")
    await database.stop()
