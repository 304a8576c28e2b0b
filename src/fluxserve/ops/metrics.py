"""Prometheus metrics, fed by the event bus."""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.errors import Unavailable
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.ports import Waiting
from fluxserve.core.request import JSON

log = logging.getLogger(__name__)

BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
STARTS_MAX = 100_000  # runs whose start is remembered until they end; the oldest is forgotten

CHANNEL_STATES = ("ready", "resting", "probing")
CHANNEL_COUNTS = {
    "submitted": "Submissions that a provider accepted, since the start",
    "refused": "Submissions that a provider refused, since the start",
    "unknown": "Submissions whose answer was lost, since the start",
    "resubmitted": "Submissions sent again because on_unknown says so, since the start",
}
CHANNEL_GAUGES = {
    "open": "Submissions that the provider may be working on",
    "unresolved": "Submissions of which nobody can tell whether they happened",
}


class Channels(Collector):
    """Upstream channels as they are when somebody looks."""

    def __init__(self, reports: Callable[[], Sequence[Mapping[str, JSON]]]) -> None:
        self._reports = reports

    def collect(self) -> Iterable[Metric]:
        reports = [(str(report["name"]), report) for report in self._reports()]
        for field, words in CHANNEL_COUNTS.items():
            counter = CounterMetricFamily(f"fluxserve_upstream_{field}", words, labels=["channel"])
            for name, report in reports:
                counter.add_metric([name], _number(report[field]))
            yield counter
        for field, words in CHANNEL_GAUGES.items():
            gauge = GaugeMetricFamily(f"fluxserve_upstream_{field}", words, labels=["channel"])
            for name, report in reports:
                gauge.add_metric([name], _number(report[field]))
            yield gauge
        words = "1 for the state that the channel is in"
        gauge = GaugeMetricFamily("fluxserve_upstream_state", words, labels=["channel", "state"])
        for name, report in reports:
            for state in CHANNEL_STATES:
                gauge.add_metric([name, state], float(report["state"] == state))
        yield gauge


def _number(value: JSON) -> float:
    assert isinstance(value, int | float)
    return float(value)


class Metrics:
    """Counts what passes over the bus."""

    def __init__(
        self,
        bus: EventBus,
        running: Callable[[], Mapping[str, int]],
        channels: Callable[[], Sequence[Mapping[str, JSON]]] = tuple,
        waiting: Callable[[], Awaitable[Waiting]] | None = None,
    ) -> None:
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
        self._queued = Gauge(
            "fluxserve_queued", "Predictions queued", ["engine"], registry=self.registry
        )
        self._webhooks = Gauge(
            "fluxserve_webhooks_pending",
            "Webhook messages not delivered yet, due now or at their next try",
            registry=self.registry,
        )
        self.registry.register(Channels(channels))
        self._waiting = waiting
        self._count_running = running
        self._started_at: OrderedDict[str, datetime] = OrderedDict()
        bus.hook(self.hear)

    def hear(self, event: Event) -> None:
        match event.kind:
            case EventKind.QUEUED:
                self._accepted.inc()
            case EventKind.STARTED:
                self._started.inc()
                self._started_at[event.prediction_id] = event.at
                self._started_at.move_to_end(event.prediction_id)
                if len(self._started_at) > STARTS_MAX:  # ended by another process, as a rule
                    self._started_at.popitem(last=False)
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

    async def _count_waiting(self) -> None:
        """While the database is away the last counts stand: the rest is still worth telling."""
        if self._waiting is None:
            return
        try:
            waiting = await self._waiting()
        except Unavailable as error:
            log.warning("metrics: what waits could not be counted: %s", error.message)
            return
        self._queued.clear()
        for engine in {*self._count_running(), *waiting.queued}:
            self._queued.labels(engine=engine).set(waiting.queued.get(engine, 0))
        self._webhooks.set(waiting.webhooks)

    def routes(self) -> list[Route]:
        async def metrics(request: Request) -> Response:
            for engine, count in self._count_running().items():
                self._running.labels(engine=engine).set(count)
            await self._count_waiting()
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        return [Route("/metrics", metrics)]
