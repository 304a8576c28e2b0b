"""What the metrics remember, and what they count when they are asked."""

import functools
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from fluxserve.app import House
from fluxserve.core.errors import Unavailable
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.ports import Waiting
from fluxserve.engines.simulator import HOLD
from fluxserve.ops import metrics
from fluxserve.ops.metrics import Metrics
from tests.dialects.served import client_of, house_on


def test_runs_that_end_elsewhere_are_not_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "STARTS_MAX", 3)
    bus = EventBus()
    counted = Metrics(bus, dict)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(10):
        bus.publish(Event(prediction_id=str(number), kind=EventKind.STARTED, at=at))
    assert list(counted._started_at) == ["7", "8", "9"]
    for number in range(10):
        bus.publish(Event(prediction_id=str(number), kind=EventKind.FINISHED, at=at))
    assert not counted._started_at
    assert counted.registry.get_sample_value("fluxserve_run_seconds_count") == 3.0


async def test_what_waits_is_counted_for_the_whole_database(tmp_path: Path) -> None:
    async with house_on(tmp_path, {"simulator": {"outcome": "hold"}}) as house:
        run = functools.partial(sample, house)
        assert await run("fluxserve_queued", engine="simulator") == 0
        assert await run("fluxserve_webhooks_pending") == 0
        await house.deliverer.stop()
        async with client_of(house) as client:
            body = {"input": {"prompt": "a fox"}, "webhook": "https://example.org/hook"}
            body["webhook_events_filter"] = ["start", "completed"]
            path = "/v1/models/black-forest-labs/flux-schnell/predictions"
            made = (await client.post(path, json=body)).raise_for_status().json()
            assert await run("fluxserve_queued", engine=HOLD) == 1
            await client.post(made["urls"]["cancel"])
        assert await run("fluxserve_queued", engine=HOLD) is None
        assert await run("fluxserve_webhooks_pending") == 1


async def test_metrics_are_told_while_the_database_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([Waiting(queued={"local": 2}, webhooks=3)])

    async def count() -> Waiting:
        try:
            return next(answers)
        except StopIteration:
            raise Unavailable("the database does not answer") from None

    counted = Metrics(EventBus(), lambda: {"local": 1}, waiting=count)
    (route,) = counted.routes()
    transport = httpx.ASGITransport(Starlette(routes=[route]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(2):
            text = (await client.get("/metrics")).raise_for_status().text
            assert 'fluxserve_queued{engine="local"} 2.0' in text
            assert "fluxserve_webhooks_pending 3.0" in text
            assert 'fluxserve_running{engine="local"} 1.0' in text
    assert "could not be counted" in caplog.text


async def sample(house: House, name: str, **labels: str) -> float | None:
    async with client_of(house) as client:
        (await client.get("/metrics")).raise_for_status()
    return house.metrics.registry.get_sample_value(name, labels)
