"""Hands work on from a channel that is full to one that has room.

A route is chosen when a prediction is made; of many made at once all may have been sent to the
same channel before it was full.
"""

import logging
from collections.abc import Callable, Sequence

from fluxserve.core.attempts import Attempt
from fluxserve.core.prediction import Prediction
from fluxserve.engines.upstream.base import Channel, Desk

log = logging.getLogger(__name__)


class Overflow:
    """What one channel's queue has to do with the others."""

    def __init__(self, desk: Desk, channel: Channel, serve: Callable[[Prediction], None]) -> None:
        """`serve` starts work on a prediction of which something is submitted already."""
        self._desk = desk
        self._channel = channel
        self._serve = serve
        self._rivals = _rivals(desk, channel)
        self._stuck: tuple[Prediction, frozenset[str]] | None = None  # the first that nobody takes

    def is_promising(self) -> bool:
        """Whether the channel is full, and one of its queue may find room elsewhere now."""
        if self._channel.health.room > 0:
            self._stuck = None  # the first in the queue will be another
            return False
        if not any(rival.health.free > 0 for rival in self._rivals):
            return False
        return self._stuck is None or self._roomy(*self._stuck) is not None

    async def hand_on(self, prediction: Prediction) -> bool:
        """Give a claimed prediction to a channel with room; False when none can take it."""
        earlier: Sequence[Attempt] = ()
        if prediction.attempt > 1:
            earlier = await self._desk.attempts.of(prediction.id)
        if any(attempt.state.is_open for attempt in earlier):
            self._serve(prediction)
            return True
        tried = frozenset(a.channel for a in earlier if a.refused) | {self._channel.name}
        other = self._roomy(prediction, tried)
        if other is None:
            self._stuck = prediction, tried
            await self._desk.put_back(prediction)
            return False
        other.health.coming += 1
        log.info("%s is full: %s goes to %s", self._channel.name, prediction.id, other.name)
        await self._desk.put_back(prediction, other.name)
        return True

    def _roomy(self, prediction: Prediction, tried: frozenset[str]) -> Channel | None:
        """The channel that would be chosen now, if it has room."""
        channel = self._desk.channels.get(self._desk.other_route(prediction, tried) or "")
        return channel if channel is not None and channel.health.free > 0 else None


def _rivals(desk: Desk, channel: Channel) -> Sequence[Channel]:
    """Other channels that serve something that this one serves."""
    names: set[str] = set()
    for card in desk.catalog.cards():
        engines = {route.engine for route in desk.router.routes(card)}
        names |= engines if channel.name in engines else set()
    return [desk.channels[name] for name in sorted(names - {channel.name}) if name in desk.channels]
