"""Prometheus metrics, fed by the event bus."""

from collections.abc import Callable, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.events import Event, EventBus, EventKind

BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """Counts what passes over the bus."""

    def __init__(self, bus: EventBus, running: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self._accepted = Counter(
            "fluxserve_predictions_accepted", "Predictions accepted", registry=self.registry
        )
        self._started = Counter(
            "fluxserve_predictions_started", "Runs started", registry=self.registry
        )
        self._requeued = Counter(
            "fluxserve_predictions_requeued", "Runs that went back", registry=self.registry
        )
        self._finished = Counter(
            "fluxserve_predictions_finished",
            "Predictions finished",
            ["status"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "fluxserve_run_seconds",
            "Seconds from start to end of a run",
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._running = Gauge(
            "fluxserve_running", "Predictions running", ["engine"], registry=self.registry
        )
        self._count_running = running
        self._started_at: dict[str, datetime] = {}
        bus.hook(self.hear)

    def hear(self, event: Event) -> None:
        match event.kind:
            case EventKind.QUEUED:
                self._accepted.inc()
            case EventKind.STARTED:
                self._started.inc()
                self._started_at[event.prediction_id] = event.at
            case EventKind.REQUEUED:
                self._requeued.inc()
                self._started_at.pop(event.prediction_id, None)
            case EventKind.FINISHED:
                self._finished.labels(status=str(event.data.get("status", "unknown"))).inc()
                began = self._started_at.pop(event.prediction_id, None)
                if began is not None:
                    self._duration.observe((event.at - began).total_seconds())
            case _:
                pass

    def routes(self) -> list[Route]:
        async def metrics(request: Request) -> Response:
            for engine, count in self._count_running().items():
                self._running.labels(engine=engine).set(count)
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        return [Route("/metrics", metrics)]
