"""What becomes of work that its channel cannot take now: another route, a wait, or the end."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from fluxserve.core.attempts import Attempt
from fluxserve.core.errors import ErrorCode, Failure
from fluxserve.core.prediction import Prediction
from fluxserve.engines.upstream import reading
from fluxserve.engines.upstream.answers import Refusal, Refused
from fluxserve.engines.upstream.base import Channel, Desk
from fluxserve.engines.upstream.channel import ChannelState

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at patience, and at a rest that may end early


class Recourse:
    """For the queue of one channel. Of what is begun there, nothing goes to another one."""

    def __init__(self, desk: Desk, channel: Channel, serve: Callable[[Prediction], None]) -> None:
        """`serve` starts work on a prediction of which something is submitted already."""
        self._desk = desk
        self._channel = channel
        self._serve = serve
        self._waiting: Prediction | None = None  # the first in the queue of a resting channel
        self._probe = asyncio.Lock()
        self._is_over = asyncio.Event()

    def stop(self) -> None:
        """Let nobody wait any more."""
        self._is_over.set()

    async def pause(self, seconds: float) -> bool:
        """Wait; False when the server stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_over.wait()
        return not self._is_over.is_set()

    # --- while the channel rests -----------------------------------------------------------------

    def must_wait(self) -> bool:
        """Whether nothing has come up for the first in the queue: no claim is written to see."""
        if not is_resting(self._channel):
            self._waiting = None
        first = self._waiting
        if first is None:
            return False
        return self._well_route(first) is None and not self.has_waited(first)

    async def divert(self, prediction: Prediction) -> bool:
        """Hand on or end what cannot wait; False when it can."""
        attempts = await self._desk.attempts.of(prediction.id)
        if any(attempt.state.is_open for attempt in attempts):
            self._serve(prediction)  # what is open of it needs no channel that is well
            return True
        self._waiting = None
        if (other := self._well_route(prediction)) is not None:
            await self._desk.put_back(prediction, other)
        elif self.has_waited(prediction):
            await self._give_up(prediction)
        else:
            self._waiting = prediction
            await self._desk.put_back(prediction)
            return False
        return True

    @contextlib.asynccontextmanager
    async def rested(self, prediction: Prediction, held: Sequence[Attempt]) -> AsyncIterator[bool]:
        """For a missing part of what is begun: its channel is well, or this is the one probe.

        False when the wait was in vain; the prediction is seen to then.
        """
        if self._channel.health.state is ChannelState.READY:
            yield True
            return
        async with self._probe:
            yield await self._wait_out(prediction, held)

    async def _wait_out(self, prediction: Prediction, held: Sequence[Attempt]) -> bool:
        health = self._channel.health
        while is_resting(self._channel):
            if self.has_waited(prediction, held):
                await self._give_up(prediction)
                return False
            left_s = max(0.0, health.rests_until - health.clock())
            if not await self.pause(min(LOOK_S, left_s)):
                await self._desk.put_back(prediction)
                return False
        return True

    async def _give_up(self, prediction: Prediction) -> None:
        reason = self._channel.health.trouble or f"{self._channel.name} is resting"
        failure = Failure(code=ErrorCode.UPSTREAM_FAILED, message=reason)
        await self._desk.refuse(prediction, failure)

    # --- after a refusal -------------------------------------------------------------------------

    def judged(self, refused: Refused) -> Refused:
        """Note what a refusal says of the channel; tell the content check from other refusals."""
        health = self._channel.health
        if refused.kind is Refusal.INPUT and reading.is_moderation(refused.message):
            refused = Refused(Refusal.CONTENT, refused.message)
        health.refused += 1
        if refused.kind.is_trouble:
            health.had_trouble(refused.message, rest_s=refused.retry_after_s)
            log.warning("%s rests: %s", self._channel.name, refused.message)
        else:
            if refused.kind is Refusal.MODEL:
                log.warning("%s does not serve it: %s", self._channel.name, refused.message)
            health.went_well()
        return refused

    async def after(self, prediction: Prediction, refused: Refused) -> None:
        """A submission did not happen: another route, or later, or the end."""
        earlier = await self._desk.attempts.of(prediction.id)
        held = [attempt for attempt in earlier if attempt.state.is_open]
        tried = {a.channel for a in earlier if a.refused} | {self._channel.name}
        other = None
        if refused.kind is not Refusal.CONTENT and not held:
            other = self._desk.other_route(prediction, tried)
        if other is not None:
            log.info("%s goes on to %s", prediction.id, other)
            await self._desk.put_back(prediction, other)
        elif refused.kind.passes and not self.has_waited(prediction, held):
            await self._desk.put_back(prediction)
        else:
            await self._desk.refuse(prediction, failure_of(refused))

    def has_waited(self, prediction: Prediction, held: Sequence[Attempt] = ()) -> bool:
        """Whether patience is over; it begins anew with the first submission that is `held`."""
        since = min((attempt.created_at for attempt in held), default=prediction.created_at)
        age_s = (self._desk.clock() - since).total_seconds()
        return age_s >= self._channel.spec.patience_s

    # --- routes ----------------------------------------------------------------------------------

    def _well_route(self, prediction: Prediction) -> str | None:
        """Another route that does not rest."""
        other = self._desk.other_route(prediction, {self._channel.name})
        channel = self._desk.channels.get(other or "")
        return None if channel is not None and is_resting(channel) else other


def is_resting(channel: Channel) -> bool:
    return channel.health.state is ChannelState.RESTING


_CODES = {
    Refusal.CONTENT: ErrorCode.INPUT_REFUSED,
    Refusal.RATE: ErrorCode.RATE_LIMITED,
}


def failure_of(refused: Refused) -> Failure:
    """A refusal as the end of a prediction."""
    code = _CODES.get(refused.kind, ErrorCode.UPSTREAM_FAILED)
    return Failure(code=code, message=refused.message, retry_after_s=refused.retry_after_s)
