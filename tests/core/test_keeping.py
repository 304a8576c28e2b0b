"""What the keeper does in the background: it stops at nothing, and leaves nobody waiting."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from fluxserve.core.access import OPEN_CALLER
from fluxserve.core.errors import ErrorCode
from fluxserve.core.ids import new_id
from fluxserve.core.keeper import Retention
from fluxserve.core.ports import Query, StoredFile
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import ImageParams, Origin
from fluxserve.storage.files import SqlFileStore
from tests.core.conftest import Bench

S = PredictionStatus
PARAMS = ImageParams(model="flux-dev", prompt="a fox")


async def create(bench: Bench) -> Prediction:
    return await bench.service.create(PARAMS, Origin(dialect="native"), OPEN_CALLER)


def pass_time(bench: Bench, seconds: float) -> None:
    bench.clock.at += timedelta(seconds=seconds)


async def test_words_of_many_that_left_no_files_go_in_one_sweep(bench: Bench) -> None:
    canceled = [await bench.service.cancel((await create(bench)).id) for _ in range(150)]
    pass_time(bench, 101)
    await bench.keeper(Retention(files_s=100)).sweep()
    for row in canceled:
        assert (await bench.service.get(row.id)).data_removed


@pytest.mark.parametrize("where_to", ["another", None])
async def test_a_lost_run_of_an_engine_that_is_gone_waits_for_nobody(
    bench: Bench, where_to: str | None
) -> None:
    lost = await create(bench)
    at = bench.clock()
    await bench.store.claim("told", owner="dead", at=at, lease_until=at + timedelta(seconds=1))
    pass_time(bench, 2)
    keeper = bench.keeper(home=lambda row: where_to)
    await keeper.recover()
    now = await bench.service.get(lost.id)
    if where_to is None:
        assert now.status is S.FAILED
        assert now.failure is not None
        assert now.failure.code is ErrorCode.UNAVAILABLE
    else:
        assert (now.status, now.engine) == (S.QUEUED, where_to)


class Shared(SqlFileStore):
    """Files that another server deletes just before this one does."""

    async def expired(self, at: datetime, limit: int = 100) -> Sequence[StoredFile]:
        found = await super().expired(at, limit)
        for file in found:
            await super().delete(file.id)
        return found


async def test_two_servers_that_sweep_the_same_files_do_not_stop_each_other(bench: Bench) -> None:
    at = bench.clock()
    blob = await bench.blobs.put("uploads/a", b"a", "image/png")
    file = StoredFile(
        id=new_id(),
        key_id=None,
        blob=blob,
        name="a",
        created_at=at,
        expires_at=at + timedelta(seconds=1),
    )
    await bench.files.add(file)
    old = await bench.service.cancel((await create(bench)).id)
    pass_time(bench, 1001)
    shared = replace(bench, files=Shared(bench.files._database, bench.clock))
    await shared.keeper(Retention(files_s=0, predictions_s=1000)).sweep()
    assert not await bench.store.page(query_of(old))


def query_of(row: Prediction) -> Query:
    return Query(key_id=row.origin.key_id)


async def test_a_server_that_is_started_anew_each_day_still_tidies_up(bench: Bench) -> None:
    tidied: list[datetime] = []

    async def tidy() -> None:
        tidied.append(bench.clock())

    for _ in range(3):  # mornings
        keeper = bench.keeper(daily=[tidy])
        await keeper.sweep()
        for _ in range(8 * 4):
            pass_time(bench, 900)
            await keeper.sweep()
        pass_time(bench, 16 * 3600)
    assert len(tidied) == 3
