"""What every prediction store promises about lists, and about forgetting."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fluxserve.core.errors import Conflict, NotFound
from fluxserve.core.events import EventKind
from fluxserve.core.ports import DeliveryStore, FileStore, PredictionStore, Query
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import BlobRef, ImageInput
from tests.contracts.material import (
    NOW,
    after,
    blob,
    delivery,
    event,
    finished,
    output,
    prediction,
    request,
    stored_file,
)


async def add(store: PredictionStore, *inputs: BlobRef, **more: object) -> Prediction:
    one = prediction(*inputs, **more)
    return await store.add(one, event(one))


async def succeed(store: PredictionStore, at_s: float, *outputs: str) -> Prediction:
    """Start the next one and finish it at NOW + at_s."""
    claimed = await store.claim("local", owner="w", at=NOW, lease_until=after(30))
    assert claimed is not None
    running = claimed[0]
    done = running.succeed(tuple(output(key) for key in outputs), after(at_s), {})
    await store.move(running, done, finished(done))
    return done


def keys_of(blobs: Sequence[BlobRef]) -> list[str]:
    return sorted(one.key for one in blobs)


# --- lists ---------------------------------------------------------------------------------------


async def test_pages_are_newest_first_and_hold_still_while_others_arrive(
    store: PredictionStore,
) -> None:
    old = [await add(store, created_at=after(n // 2)) for n in range(7)]
    expected = [one.id for one in sorted(old, key=lambda one: (one.created_at, one.id))][::-1]
    seen: list[str] = []
    cursor = None
    while page := await store.page(Query(limit=3, cursor=cursor)):
        seen += [one.id for one in page]
        cursor = (page[-1].created_at, page[-1].id)
        await add(store, created_at=after(100))
    assert seen == expected


async def test_a_list_can_be_narrowed_by_everything_a_query_says(store: PredictionStore) -> None:
    mine = await add(store, key_id="mine", dialect="bfl", model_name="pro", created_at=after(1))
    other = await add(store, key_id="yours", model_name="dev", created_at=after(2))
    running = await succeed(store, 5)

    async def found(query: Query) -> set[str]:
        page = {one.id for one in await store.page(query)}
        assert await store.count(query) == len(page)
        return page

    assert running.id == mine.id
    assert await found(Query()) == {mine.id, other.id}
    assert await found(Query(key_id="mine")) == {mine.id}
    assert await found(Query(dialect="native")) == {other.id}
    assert await found(Query(model_names=("pro", "max"))) == {mine.id}
    both = (PredictionStatus.QUEUED, PredictionStatus.FAILED)
    assert await found(Query(statuses=both)) == {other.id}
    assert await found(Query(created_after=after(2))) == {other.id}
    assert await found(Query(created_before=after(2))) == {mine.id}
    assert await found(Query(key_id="mine", dialect="native")) == set()


# --- forgetting ----------------------------------------------------------------------------------


async def test_only_finished_predictions_can_be_deleted(store: PredictionStore) -> None:
    one = await add(store)
    with pytest.raises(Conflict):
        await store.delete(one.id)
    await store.move(one, one.cancel(NOW), finished(one))
    assert await store.delete(one.id) == []
    with pytest.raises(NotFound):
        await store.get(one.id)
    with pytest.raises(NotFound):
        await store.delete(one.id)


async def test_events_and_messages_go_with_their_prediction(
    store: PredictionStore, deliveries: DeliveryStore
) -> None:
    one = await add(store)
    await store.move(one, one.cancel(NOW), finished(one), (delivery(one),))
    await store.delete(one.id)
    assert await store.events(one.id) == []
    assert await deliveries.page() == []


async def test_a_blob_is_handed_out_when_nothing_needs_it_any_more(
    store: PredictionStore, files: FileStore
) -> None:
    shared, uploaded = blob("inputs/shared"), blob("inputs/uploaded")
    file = stored_file(uploaded.key)
    await files.add(file)
    first = await add(store, shared, uploaded, shared)
    second = await add(store, shared, created_at=after(1))
    await succeed(store, 1, "outputs/1")
    await succeed(store, 2, "outputs/2")
    assert keys_of(await store.delete(first.id)) == ["outputs/1"]
    assert keys_of(await store.delete(second.id)) == ["inputs/shared", "outputs/2"]
    assert await files.delete(file.id) == uploaded


async def test_a_picture_that_a_move_brings_in_is_kept(
    store: PredictionStore, files: FileStore
) -> None:
    one = await add(store)
    fetched, mask = blob("inputs/fetched"), ImageInput(blob=blob("inputs/mask"))
    sized = replace(one, request=request(fetched, mask=mask))
    await store.move(one, sized.cancel(NOW), finished(one))
    file = stored_file(fetched.key)
    await files.add(file)
    assert await files.delete(file.id) is None
    assert keys_of(await store.delete(one.id)) == ["inputs/fetched", "inputs/mask"]


async def test_stripping_drops_pictures_and_words_of_old_finished_predictions(
    store: PredictionStore,
) -> None:
    old = await add(store, blob("inputs/a"))
    await succeed(store, 10, "outputs/a")
    young = await add(store)
    await succeed(store, 20, "outputs/b")
    queued, whole = await add(store), await store.get(old.id)
    assert keys_of(await store.strip(after(20))) == ["inputs/a", "outputs/a"]
    stripped = await store.get(old.id)
    assert stripped == whole.strip()
    assert stripped.data_removed
    assert (stripped.outputs, stripped.logs) == ((), "")
    assert (stripped.request.prompt, stripped.request.images) == ("", ())
    assert stripped.origin.said == {}
    assert stripped.request.seed == old.request.seed
    assert stripped.status is PredictionStatus.SUCCEEDED
    assert not (await store.get(young.id)).data_removed
    assert await store.get(queued.id) == queued
    assert await store.strip(after(20)) == []


async def test_stripping_goes_on_where_it_stopped(store: PredictionStore) -> None:
    for n in range(3):
        await add(store, created_at=after(n))
        await succeed(store, n, f"outputs/{n}")
    assert keys_of(await store.strip(after(9), limit=2)) == ["outputs/0", "outputs/1"]
    assert keys_of(await store.strip(after(9), limit=2)) == ["outputs/2"]


async def test_purging_forgets_old_finished_predictions_whole(store: PredictionStore) -> None:
    gone = [await add(store, created_at=after(n)) for n in range(3)]
    for _ in gone:
        await succeed(store, 5)
    queued = await add(store, created_at=after(3))
    young = await add(store, created_at=after(4))
    await store.move(young, young.cancel(NOW), finished(young))
    assert await store.purge(after(4), limit=2) == 2
    assert await store.purge(after(4), limit=2) == 1
    assert await store.purge(after(4), limit=2) == 0
    assert {one.id for one in await store.page(Query())} == {queued.id, young.id}


async def test_a_purged_blob_can_be_let_go_by_its_last_holder(
    store: PredictionStore, files: FileStore
) -> None:
    await add(store, blob("inputs/a"))
    await succeed(store, 5)
    file = stored_file("inputs/a")
    await files.add(file)
    await store.purge(after(9))
    assert await files.delete(file.id) == file.blob


async def test_output_events_keep_their_data(store: PredictionStore) -> None:
    one = await add(store)
    await store.claim("local", owner="w", at=NOW, lease_until=after(30))
    told = replace(event(one, EventKind.OUTPUT), data={"key": "outputs/a", "list": [1, None, "é"]})
    await store.append(told, attempt=1)
    assert (await store.events(one.id))[-1].data == told.data
