"""What the metrics remember."""

from datetime import UTC, datetime

import pytest

from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.ops import metrics
from fluxserve.ops.metrics import Metrics


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
