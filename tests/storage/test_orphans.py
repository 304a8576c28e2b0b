"""Blobs without a row go; blobs with one, young ones, and those whose row is on its way, stay."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fluxserve.core.blobkeys import input_key, output_key
from fluxserve.core.errors import NotFound
from fluxserve.core.request import BlobRef
from fluxserve.storage.blobs import Blobs, open_blobs
from fluxserve.storage.database import Database
from fluxserve.storage.files import SqlFileStore
from fluxserve.storage.opening import open_database
from fluxserve.storage.orphans import Orphans, _unused
from fluxserve.storage.predictions import SqlPredictionStore
from tests.contracts.material import event, finished, output, prediction, stored_file

DAY = timedelta(days=1)
NOW = datetime.now(UTC)  # stores date what they write by the real clock
PICTURE = b"the same picture"


class House:
    """A store, files and blobs, with a clock that is told."""

    def __init__(self, database: Database, url: str) -> None:
        self.at = NOW
        self.database = database
        self.store = SqlPredictionStore(database)
        self.files = SqlFileStore(database, lambda: self.at)
        self.blobs = open_blobs(url, lambda: self.at)

    async def take(self) -> BlobRef:
        """The picture comes in, as the intake does it."""
        return await self.blobs.put(input_key("ab", "image/png", self.at), PICTURE, "image/png")

    async def sweep(self, before_deletes: Callable[[], Awaitable[object]] | None = None) -> int:
        """A sweep, into which something else may come between its look and its first delete."""
        blobs = self.blobs if before_deletes is None else Interrupted(self.blobs, before_deletes)
        return await Orphans(self.database, blobs, clock=lambda: self.at).sweep()


class Interrupted(Blobs):
    """Blobs whose first delete comes a little later than something else."""

    def __init__(self, blobs: Blobs, first: Callable[[], Awaitable[object]]) -> None:
        super().__init__(blobs._store, clock=blobs._clock)
        self._first: Callable[[], Awaitable[object]] | None = first

    async def delete(self, key: str) -> None:
        if self._first is not None:
            first, self._first = self._first, None
            await first()
        await super().delete(key)


@pytest.fixture(params=["memory", "local"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    database = open_database("sqlite://")
    await database.start()
    url = "memory://" if request.param == "memory" else (tmp_path / "blobs").as_uri()
    yield House(database, url)
    await database.stop()


async def test_only_old_blobs_that_nothing_refers_to_are_deleted(house: House) -> None:
    input_ = await house.take()
    upload = await house.blobs.put("uploads/used", b"a", "image/png")
    lost = (input_key("cd", "image/png", NOW), "outputs/lost/1-0.png", "uploads/lost")
    for key in lost:
        await house.blobs.put(key, b"a", "image/png")
    one = prediction(input_)
    await house.store.add(one, event(one))
    await house.files.add(stored_file(upload.key))
    assert await house.sweep() == 0
    house.at = NOW + 3 * DAY
    assert await house.sweep() == 3
    assert await house.blobs.get(input_.key) == PICTURE
    assert await house.blobs.get(upload.key) == b"a"
    for key in lost:
        with pytest.raises(NotFound):
            await house.blobs.get(key)


@pytest.mark.parametrize("days", [0, 1, 2, 3])
@pytest.mark.parametrize("arrives_first", [True, False])
async def test_an_input_survives_the_end_of_its_last_user_in_either_order(
    house: House, days: int, arrives_first: bool
) -> None:
    first = prediction(await house.take())
    await house.store.add(first, event(first))
    await house.store.move(first, first.cancel(NOW), finished(first))
    house.at = NOW + days * DAY
    if arrives_first:
        taken = await house.take()
        unused = await house.store.delete(first.id)
    else:
        unused = await house.store.delete(first.id)
        taken = await house.take()
    assert [blob.key for blob in unused] == [input_key("ab", "image/png", NOW)]
    for blob in unused:
        await house.blobs.delete(blob.key)
    second = prediction(taken)
    await house.store.add(second, event(second))
    house.at += 10 * DAY
    await house.sweep()
    assert await house.blobs.get(taken.key) == PICTURE


@pytest.mark.parametrize("hours", [25, 36, 48, 72])
async def test_an_input_that_arrives_while_the_sweep_deletes_survives(
    house: House, hours: int
) -> None:
    await house.take()  # its row never came
    await house.blobs.put("uploads/lost", b"a", "image/png")  # what the sweep finds at least
    house.at = NOW + timedelta(hours=hours)
    taken: list[BlobRef] = []

    async def arrive() -> None:
        taken.append(await house.take())

    assert await house.sweep(arrive) >= 1
    second = prediction(taken[0])
    await house.store.add(second, event(second))
    house.at += 10 * DAY
    await house.sweep()
    assert await house.blobs.get(taken[0].key) == PICTURE


async def test_pictures_of_a_prediction_that_lives_are_not_swept(house: House) -> None:
    one = prediction()
    await house.store.add(one, event(one))
    claimed = await house.store.claim("local", owner="w", at=NOW, lease_until=NOW + DAY)
    assert claimed is not None
    running = claimed[0]
    lost = output_key(one.id, 0, 0, "image/png")  # of a start before this one
    key = output_key(one.id, running.attempt, 0, "image/png")
    for place in (key, lost):
        await house.blobs.put(place, b"a", "image/png")
    house.at = NOW + 9 * DAY
    assert await house.sweep() == 0
    done = running.succeed((output(key),), house.at, {})
    await house.store.move(running, done, finished(done))
    assert await house.sweep() == 1
    assert await house.blobs.get(key) == b"a"


async def test_a_picture_whose_prediction_ends_while_the_sweep_looks_survives(house: House) -> None:
    one = prediction()
    await house.store.add(one, event(one))
    claimed = await house.store.claim("local", owner="w", at=NOW, lease_until=NOW + DAY)
    assert claimed is not None
    running = claimed[0]
    key = output_key(one.id, running.attempt, 0, "image/png")
    done = running.succeed((output(key),), NOW, {})
    look, found = _unused([key]), None
    rows = await house.database.fetch(next(look))
    await house.store.move(running, done, finished(done))
    while found is None:
        try:
            rows = await house.database.fetch(look.send(rows))
        except StopIteration as end:
            found = end.value
    assert found == []
