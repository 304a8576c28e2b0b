"""The life of a paid submission, the same for every provider.

    claim ─> inputs ─> words ─> intent (committed) ─> one POST ─> accepted ─> polls ─> pictures
                                    │                   ├ refused: void, another route or a failure
                                    └ lost ─> unknown ─> looked up: accepted, void, or given up

`Submitter` does the upper row up to the POST, `Follower` everything after it. Both act on rows:
nothing here is needed again after a crash.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from fluxserve.core.attempts import Attempt, AttemptState, AttemptStore
from fluxserve.core.catalog import Catalog
from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import Conflict, ErrorCode, Failure, NotFound, Unavailable
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.inputs import load_inputs
from fluxserve.core.outcomes import Outcomes, Save
from fluxserve.core.ports import Intake, PredictionStore
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON
from fluxserve.core.routing import Router
from fluxserve.core.sizes import Size
from fluxserve.engines.upstream.answers import Order, Provider, Ticket
from fluxserve.engines.upstream.channel import ChannelHealth, ChannelSpec

log = logging.getLogger(__name__)

OWNER = "upstream"  # of leases: any worker may go on with an accepted submission
# Of one channel: Replicate allows 3,000 such requests a minute
# (https://replicate.com/docs/topics/predictions/rate-limits).
POLLS_PER_S = 50
# Between tries to write down what a provider said: a database that is taken over by its standby is
# back within half a minute.
AGAIN_S = (0.1, 0.5, 2.0, 5.0, 10.0, 20.0)

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Channel:
    """One account at a provider, at work."""

    spec: ChannelSpec
    provider: Provider
    health: ChannelHealth
    on_room: Callable[[], None] = lambda: None  # called when a submission ends

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(slots=True, kw_only=True)
class Desk:
    """What submitting and following share."""

    store: PredictionStore
    attempts: AttemptStore
    outcomes: Outcomes
    intake: Intake
    bus: EventBus
    catalog: Catalog
    router: Router
    clock: Callable[[], datetime]
    channels: Mapping[str, Channel]
    callback_base: str = ""  # a URL that providers can reach; the token is appended
    lease_s: float = 60.0  # one worker's time to fetch the inputs, or for one due submission
    drain_s: float = 20.0  # a stop waits this long for what is being submitted
    is_elsewhere: Callable[[str], bool] = lambda channel: False  # another server has it
    in_flight: set[str] = field(default_factory=set)  # tokens whose POST is under way here
    due: asyncio.Event = field(default_factory=asyncio.Event)  # set when something became due
    wakes_at: datetime | None = None  # when those who wait for `due` look anyway

    def seconds(self, count: float) -> timedelta:
        return timedelta(seconds=count)

    def callback_url(self, channel: Channel, token: str) -> str:
        """Where the provider of `channel` can call back; "" when it cannot.

        Providers take https only; http is for one that is reached over http itself.
        """
        base = self.callback_base
        is_plain = channel.spec.base_url.startswith("http://")
        return base + token if base.startswith("https://") or (base and is_plain) else ""

    def expect(self, at: datetime) -> None:
        """Something becomes due at `at`."""
        if self.wakes_at is None or at < self.wakes_at:
            self.due.set()

    async def order(
        self, prediction: Prediction, channel: Channel, model: str, token: str, part: int
    ) -> Order:
        """The share `part` of a prediction as an order, its inputs loaded and its size settled."""
        request = prediction.request
        images, mask = await load_inputs(self.intake, request)
        first = Size(images[0].width, images[0].height) if images else None
        settled = self.catalog.settle(request, first)
        per = channel.provider.outputs_max(model)
        start = part * per
        share = replace(
            settled, seed=settled.seed + start, num_outputs=min(per, request.num_outputs - start)
        )
        return Order(
            token=token,
            model=model,
            request=share,
            images=images,
            mask=mask,
            callback_url=self.callback_url(channel, token),
        )

    async def refuse(self, prediction: Prediction, failure: Failure) -> bool:
        """End a prediction that failed; False when it has moved on, or is gone."""
        try:
            await self.outcomes.fail(prediction, failure)
        except (Conflict, NotFound):
            return False
        log.info("%s failed: %s", prediction.id, failure.message)
        return True

    def other_route(self, prediction: Prediction, tried: Iterable[str]) -> str | None:
        """Who serves the prediction if none of `tried` does; None: nobody."""
        card = self.catalog.card(prediction.request.model)
        try:
            return self.router.choose(card, prediction.request, but=sorted(tried))
        except Unavailable:
            return None

    async def put_back(self, prediction: Prediction, engine: str | None = None) -> None:
        """Back to the queue, to `engine` if given; nothing happens as with `refuse`."""
        with contextlib.suppress(Conflict, NotFound):
            await self.outcomes.requeue(prediction, engine)

    def tell(self, prediction: Prediction, kind: EventKind, data: Mapping[str, JSON]) -> None:
        at = self.clock()
        self.bus.publish(Event(prediction_id=prediction.id, kind=kind, at=at, data=data))

    async def learned(self, attempt: Attempt, after: Attempt) -> Attempt:
        """Save what the provider said, whichever start has the attempt by now. Conflict."""
        return await persistently(lambda: self._learned(attempt, after))

    async def _learned(self, attempt: Attempt, after: Attempt) -> Attempt:
        try:
            return await self.attempts.move(attempt, after)
        except Conflict:
            fresh = await self.attempts.get(attempt.id)
            if fresh == after:
                return fresh  # written before, by a write whose answer was lost
            if fresh.state is not attempt.state or fresh.fence == attempt.fence:
                raise
            return await self.attempts.move(fresh, replace(after, fence=fresh.fence))

    async def close(self, attempt: Attempt, after: Attempt) -> Attempt | None:
        """Save a move that ends the provider's work; None when somebody else was first."""
        is_unknown = after.state is AttemptState.UNKNOWN
        at = None if is_unknown or after.state is AttemptState.FETCHED else self.clock()
        ended = replace(after if is_unknown else after.without_words(), finished_at=at)
        try:
            saved = await self.learned(attempt, ended)
        except Conflict:
            return None
        self.freed(attempt)
        return saved

    def ending(self, attempt: Attempt, paid: Attempt, events: Sequence[Event]) -> Save:
        """Saves the end of a prediction with that of its one attempt and what is told of it."""

        async def save(
            before: Prediction, after: Prediction, end: Event, deliveries: Sequence[Delivery]
        ) -> Event:
            pair = attempt, replace(paid.without_words(), finished_at=end.at)
            *early, last = await self.attempts.finish(
                pair, (before, after), [*events, end], deliveries
            )
            self.freed(attempt)
            for event in early:
                self.bus.publish(event)
            return last

        return save

    def freed(self, attempt: Attempt) -> None:
        """The provider's work on `attempt`, as it was before its end, is over: there is room."""
        channel = self.channels.get(attempt.channel)
        if channel is not None and attempt.state is not AttemptState.FETCHED:
            channel.health.open = max(0, channel.health.open - 1)
            channel.on_room()


async def persistently(work: Callable[[], Awaitable[T]]) -> T:
    """`work` again and again while what it writes to does not answer; in the end Unavailable.

    For what this process alone knows.
    """
    for wait_s in AGAIN_S:
        try:
            return await work()
        except Unavailable as error:
            log.warning("%s; trying again in %g s", error.message, wait_s)
            await asyncio.sleep(wait_s)
    return await work()


def ticket_of(attempt: Attempt) -> Ticket:
    return Ticket(
        upstream_id=attempt.upstream_id,
        poll_url=attempt.poll_url,
        model=attempt.model,
        token=attempt.id,
    )


def is_ours(prediction: Prediction, attempt: Attempt) -> bool:
    """Whether the prediction still runs under the start that this attempt belongs to.

    One that lost its lease is queued again, and not ours until a new start adopts the attempt.
    """
    is_running = prediction.status is PredictionStatus.RUNNING
    return is_running and prediction.attempt == attempt.fence


def pause(channel: Channel, polls: int, trouble: int, dice: Callable[[], float]) -> timedelta:
    """Until the next poll: longer with every poll, much longer with trouble, never quite alike.

    With very many open submissions it is longer still, so that one channel is asked no more than
    `POLLS_PER_S` in all.
    """
    spec = channel.spec
    grown = spec.poll_s * 1.2 ** min(polls, 40) * 2.0 ** min(trouble, 10)
    wait_s = max(min(grown, spec.poll_max_s), channel.health.open / POLLS_PER_S)
    return timedelta(seconds=wait_s * (0.9 + 0.2 * dice()))


def gone(name: str) -> Failure:
    text = f"the upstream {name} is no longer configured"
    return Failure(code=ErrorCode.UPSTREAM_FAILED, message=text)
