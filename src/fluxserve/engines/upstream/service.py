"""All channels of this server: started, stopped, looked at, and told what providers call back."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import Conflict, NotFound
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ports import Query
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON
from fluxserve.engines.upstream.answers import Provider
from fluxserve.engines.upstream.base import POLLS_PER_S, Channel, Desk
from fluxserve.engines.upstream.bfl import Bfl
from fluxserve.engines.upstream.channel import (
    ChannelHealth,
    ChannelKind,
    ChannelSpec,
    ChannelState,
    check,
)
from fluxserve.engines.upstream.fluxserve import Fluxserve
from fluxserve.engines.upstream.following import Follower
from fluxserve.engines.upstream.openai import Openai
from fluxserve.engines.upstream.replicate import Replicate
from fluxserve.engines.upstream.resolving import decide
from fluxserve.engines.upstream.submitting import Submitter, is_whole
from fluxserve.engines.upstream.wavespeed import Wavespeed
from fluxserve.engines.upstream.wire import Guard

log = logging.getLogger(__name__)

CALLBACK_TRIES = 5  # a submission may move while its callback is being read
RECOUNT_S = 10.0  # open submissions are counted anew this often: other processes make some too

KINDS: Mapping[ChannelKind, Callable[[ChannelSpec, Guard], Provider]] = {
    ChannelKind.REPLICATE: Replicate,
    ChannelKind.BFL: Bfl,
    ChannelKind.WAVESPEED: Wavespeed,
    ChannelKind.OPENAI: Openai,
    ChannelKind.FLUXSERVE: Fluxserve,
}


def channels_of(
    specs: Sequence[ChannelSpec], guard: Guard, ticks: Callable[[], float]
) -> dict[str, Channel]:
    """Channels by name; StartupError for a specification that cannot work."""
    return {
        spec.name: Channel(
            spec=spec,
            provider=KINDS[spec.kind](spec, guard),
            health=ChannelHealth(spec=spec, clock=ticks),
        )
        for spec in map(check, specs)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelReport:
    """A channel as people may see it: never its key."""

    name: str
    kind: str
    state: str
    trouble: str
    rests_s: float
    open: int
    submitted: int
    refused: int
    unknown: int
    resubmitted: int
    unresolved: int
    concurrency: int
    priority: int
    weight: float
    models: Mapping[str, str]


class Upstreams:
    """The upstream engines as one part of the server."""

    def __init__(self, desk: Desk, *, is_alone: bool) -> None:
        """`is_alone`: no other process works on this store, so what was begun here has died."""
        self._desk = desk
        self._is_alone = is_alone
        self._follower = Follower(desk, is_alone=is_alone)
        self._submitters = {
            name: Submitter(desk, channel, self._follower, is_alone=is_alone)
            for name, channel in desk.channels.items()
        }
        self._canceled: asyncio.Queue[str] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        if self._is_alone:
            await self._recover()
        await self._recount()
        self._desk.bus.hook(self._hear)
        self._tasks = [
            asyncio.create_task(self._hurry_canceled(), name="cancel submissions"),
            asyncio.create_task(self._recount_forever(), name="count submissions"),
        ]
        await self._follower.start()
        for submitter in self._submitters.values():
            await submitter.start()

    async def stop(self) -> None:
        await asyncio.gather(*(s.stop() for s in self._submitters.values()))
        await self._follower.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._desk.channels.values():
            await channel.provider.close()

    def has(self, name: str) -> bool:
        """Whether there is a channel of this name."""
        return name in self._desk.channels

    def is_able(self, name: str) -> bool:
        """Whether a channel can take a submission now."""
        channel = self._desk.channels.get(name)
        return channel is not None and channel.health.free > 0

    def trouble(self, name: str) -> str | None:
        """Why a channel rests, in a sentence."""
        health = self._desk.channels[name].health
        is_resting = health.state is ChannelState.RESTING
        return (health.trouble or "resting") if is_resting else None

    def reports(self) -> Sequence[ChannelReport]:
        return [_report(channel) for channel in self._desk.channels.values()]

    async def heard(self, token: str, body: Mapping[str, JSON]) -> None:
        """A provider called back: NotFound for a token that we never sent.

        The body is believed in one thing only, the id under which the provider has the job; what
        became of it is asked there.
        """
        for _ in range(CALLBACK_TRIES):
            attempt = await self._desk.attempts.get(token)
            channel = self._desk.channels.get(attempt.channel)
            if channel is None:
                raise NotFound("no such submission")
            after = _told(attempt, channel.provider.heard(body), self._desk.clock())
            if after is None:
                return
            try:
                await self._desk.attempts.move(attempt, after)
            except Conflict:
                continue  # it moved at this very moment: the proof must not be lost
            self._desk.due.set()
            return
        log.error("%s: a callback names a job that is not its own", attempt.prediction_id)

    async def decide(self, attempt_id: str, upstream_id: str | None) -> Attempt:
        """An operator says what became of an unknown submission, and it goes on from there.

        `upstream_id`: under which the provider has it; None: it never happened. NotFound;
        Conflict when it is not unknown, or when another submission has that id.
        """
        attempt = await self._desk.attempts.get(attempt_id)
        if attempt.state is not AttemptState.UNKNOWN:
            raise Conflict(f"the submission is not unknown but {attempt.state}")
        decided = await decide(self._desk, attempt, upstream_id)
        await self._recount()
        return decided

    def _hear(self, event: Event) -> None:
        match event.kind:
            case EventKind.QUEUED | EventKind.REQUEUED:
                for submitter in self._submitters.values():
                    submitter.wake()
            case EventKind.FINISHED if event.data.get("status") in ("canceled", "expired"):
                self._canceled.put_nowait(event.prediction_id)
            case _:
                pass

    async def _hurry_canceled(self) -> None:
        """What was canceled is looked at now, so that the provider hears of it."""
        while True:
            prediction_id = await self._canceled.get()
            try:
                for attempt in await self._desk.attempts.of(prediction_id):
                    await self._hurry(attempt)
            except Exception:
                log.exception("%s: its cancel was not passed on at once", prediction_id)
            self._desk.due.set()

    async def _hurry(self, attempt: Attempt) -> None:
        if attempt.state is AttemptState.ACCEPTED:
            with contextlib.suppress(Conflict):  # it is being looked at
                due = replace(attempt, next_at=self._desk.clock())
                await self._desk.attempts.move(attempt, due)

    async def _recover(self) -> None:
        """Whatever a dead process of ours had begun: look intents up, claim the rest again."""
        now = self._desk.clock()
        if waiting := await self._desk.attempts.hurry(now, timedelta(seconds=1 / POLLS_PER_S)):
            log.info("going on with %d submissions", waiting)
        cursor: tuple[datetime, str] | None = None
        running = (PredictionStatus.RUNNING,)
        while rows := await self._desk.store.page(Query(statuses=running, cursor=cursor)):
            cursor = (rows[-1].created_at, rows[-1].id)
            for prediction in rows:
                if prediction.engine in self._desk.channels:
                    await self._reclaim(prediction)

    async def _reclaim(self, prediction: Prediction) -> None:
        """Back to the queue: all of it, or the parts that are missing."""
        attempts = await self._desk.attempts.of(prediction.id)
        if not is_whole([attempt for attempt in attempts if attempt.state.is_open]):
            await self._desk.put_back(prediction)

    async def _recount(self) -> None:
        counts = await self._desk.attempts.open_counts()
        unknown = await self._desk.attempts.unknown_counts()
        for name, channel in self._desk.channels.items():
            channel.health.open = counts.get(name, 0)
            channel.health.unresolved = unknown.get(name, 0)

    async def _recount_forever(self) -> None:
        while True:
            await asyncio.sleep(RECOUNT_S)
            try:
                await self._recount()
            except Exception:
                log.exception("counting open submissions failed; trying again")


def _told(attempt: Attempt, upstream_id: str | None, at: datetime) -> Attempt | None:
    """The attempt after a callback; None when the callback changes nothing."""
    if attempt.state is AttemptState.ACCEPTED:
        return replace(attempt, next_at=at)
    if attempt.state not in (AttemptState.INTENT, AttemptState.UNKNOWN) or upstream_id is None:
        return None
    accepted = AttemptState.ACCEPTED
    return replace(
        attempt, state=accepted, upstream_id=upstream_id, failure=None, next_at=at, trouble=0
    )


def _report(channel: Channel) -> ChannelReport:
    spec, health = channel.spec, channel.health
    return ChannelReport(
        name=spec.name,
        kind=spec.kind.value,
        state=health.state.value,
        trouble=health.trouble,
        rests_s=max(0.0, round(health.rests_until - health.clock(), 3)),
        open=health.open,
        submitted=health.submitted,
        refused=health.refused,
        unknown=health.unknown,
        resubmitted=health.resubmitted,
        unresolved=health.unresolved,
        concurrency=spec.concurrency,
        priority=spec.priority,
        weight=spec.weight,
        models=spec.models,
    )
