"""Servers tell the database what they serve; the silent and the forgotten do not count."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fluxserve.app import House, now
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import ImageParams, Origin
from fluxserve.settings import load
from fluxserve.storage.database import Database
from fluxserve.storage.nodes import SqlNodes
from tests.storage.conftest import empty

NOW = datetime(2026, 11, 22, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
A, B = "a" * 32, "b" * 32


async def test_each_hears_what_the_others_said_last(database: Database) -> None:
    nodes = SqlNodes(database)
    assert (await nodes.beat(A, frozenset({"local"}), NOW, MINUTE)).served == frozenset()
    assert (await nodes.beat(B, frozenset({"bfl", "x"}), NOW, MINUTE)).served == {"local"}
    assert (await nodes.beat(A, frozenset({"local"}), NOW, MINUTE)).served == {"bfl", "x"}
    await nodes.beat(A, frozenset({"other"}), NOW, MINUTE)
    assert (await nodes.beat(B, frozenset({"bfl"}), NOW, MINUTE)).served == {"other"}


async def test_who_was_silent_for_long_serves_nothing(database: Database) -> None:
    nodes = SqlNodes(database)
    await nodes.beat(A, frozenset({"local"}), NOW, MINUTE)
    later = NOW + 2 * MINUTE
    seen = await nodes.beat(B, frozenset(), later, MINUTE if is_by_caller(database) else -MINUTE)
    assert seen.served == frozenset()


def is_by_caller(database: Database) -> bool:
    """SQLite takes the time that it is given; PostgreSQL has its own."""
    return type(database).__name__ == "SqliteDatabase"


async def waiting(house: House, model: str) -> Prediction:
    """Queued for an engine that `house` does not have."""
    request = house.catalog.complete(ImageParams(model=model, prompt="a fox"))
    made = Prediction(
        id=new_id(),
        request=request,
        origin=Origin(dialect="native"),
        engine="local",
        created_at=now(),
    )
    event = Event(prediction_id=made.id, kind=EventKind.QUEUED, at=made.created_at, seq=1)
    return await house.store.add(made, event)


@pytest.mark.parametrize(
    ("is_alive", "status"), [(True, PredictionStatus.QUEUED), (False, PredictionStatus.FAILED)]
)
async def test_what_waits_for_another_servers_engine_is_left_to_it(
    postgresql: str, tmp_path: Path, is_alive: bool, status: PredictionStatus
) -> None:
    upstream = {"name": "theirs", "kind": "fluxserve", "base_url": "http://127.0.0.1:9"}
    said: dict[str, Any] = {"data_dir": str(tmp_path), "database": {"url": postgresql}}
    settings = load({**said, "upstream": [{**upstream, "models": ["flux-dev"]}]}, environ={})
    house = await House.open(settings)
    await house.database.start()
    await empty(house.database)
    nodes = SqlNodes(house.database)
    await nodes.beat(A, frozenset({"local"} if is_alive else ()), now(), MINUTE)
    one = await waiting(house, "flux-kontext-dev")
    await house.database.stop()
    house = await House.open(settings)
    await house.start()
    assert (await house.store.get(one.id)).status is status
    await house.stop()
