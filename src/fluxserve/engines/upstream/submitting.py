"""Takes queued predictions to their channel: an intent is committed, then one POST is sent."""

import asyncio
import contextlib
import logging
import math
import random
import time
from dataclasses import replace

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import (
    Conflict,
    ErrorCode,
    Failure,
    FluxserveError,
    Unavailable,
    UnknownModel,
)
from fluxserve.core.ids import new_id
from fluxserve.core.prediction import Prediction
from fluxserve.engines.upstream import reading
from fluxserve.engines.upstream.answers import (
    Accepted,
    Declared,
    Doubtful,
    Letter,
    Order,
    Refusal,
    Refused,
    Working,
)
from fluxserve.engines.upstream.base import OWNER, Channel, Desk, pause
from fluxserve.engines.upstream.channel import ChannelState
from fluxserve.engines.upstream.following import Follower
from fluxserve.engines.upstream.overflow import Overflow

log = logging.getLogger(__name__)

LOOK_S = 1.0  # the bus is a hint: look for work this often anyway
ALONE_LOOK_S = 5.0  # where all work comes by way of this process
SUBMITS_MAX = 32  # POSTs under way at once for one channel
INTENT_MARGIN_S = 5.0  # after the longest POST, before an intent counts as lost
FROZEN_S = 5.0  # an intent older than this was not written just now: the process was stopped
TOLERATED = 2  # lost answers in a row before a channel rests


class Submitter:
    """Feeds one channel."""

    def __init__(self, desk: Desk, channel: Channel, follower: Follower, *, is_alone: bool) -> None:
        self._desk = desk
        self._look_s = ALONE_LOOK_S if is_alone else LOOK_S
        self._channel = channel
        self._follower = follower
        self._overflow = Overflow(desk, channel, self._serve)
        self._wake = asyncio.Event()
        # By start and not by id: after a lost lease two starts may meet for a moment.
        self._serving: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._wants_room = False
        self._waiting: Prediction | None = None  # the first in the queue of a resting channel

    async def start(self) -> None:
        self._channel.on_room = self._has_room
        name = f"claim {self._channel.name}"
        self._loop = asyncio.create_task(self._claim_forever(), name=name)

    async def stop(self) -> None:
        """Claim no more; let POSTs that are under way come back."""
        if self._loop:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        if self._serving:
            await asyncio.wait(self._serving.values(), timeout=20.0)
        for task in self._serving.values():
            task.cancel()
        await asyncio.gather(*self._serving.values(), return_exceptions=True)

    def wake(self) -> None:
        self._wake.set()

    def _has_room(self) -> None:
        """Something ended: claim more, if it was for want of room that we stopped."""
        if self._wants_room:
            self._wake.set()

    async def _claim_forever(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._claim_all()
            except Exception:
                log.exception("claiming for %s failed; trying again", self._channel.name)
            # Not wait_for: on Python 3.11 it forgets a cancel that meets a wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()

    def _pause_s(self) -> float:
        """Nobody tells when a rest is over, nor when the patience of those who wait is."""
        health = self._channel.health
        if not health.rests_until:
            return LOOK_S if self._wants_room else self._look_s
        left_s = health.rests_until - health.clock()
        return min(LOOK_S, left_s) if left_s > 0 else LOOK_S

    async def _claim_all(self) -> None:
        while True:
            is_resting = self._channel.health.state is ChannelState.RESTING
            room = min(self._channel.health.room, SUBMITS_MAX) - len(self._serving)
            self._wants_room = not is_resting and room <= 0
            if not is_resting:
                self._waiting = None
            is_over = self._wants_room and self._overflow.is_promising()
            if self._wants_room and not is_over:
                return
            if self._waiting and self._must_wait(self._waiting):
                return
            at = self._desk.clock()
            until = at + self._desk.seconds(self._desk.lease_s)
            claimed = await self._desk.store.claim(
                self._channel.name, owner=OWNER, at=at, lease_until=until
            )
            health = self._channel.health
            health.coming = max(0, health.coming - 1) if claimed else 0
            if claimed is None:
                return
            prediction, event = claimed
            self._desk.bus.publish(event)
            if is_over and not await self._overflow.hand_on(prediction):
                return
            if is_over:
                continue
            if is_resting and not await self._divert(prediction):
                return
            if not is_resting:
                task = asyncio.create_task(self._serve(prediction), name=f"send {prediction.id}")
                self._serving[prediction.id, prediction.attempt] = task

    async def _divert(self, prediction: Prediction) -> bool:
        """While the channel rests: hand on or end what cannot wait; False when it can."""
        open_ones = await self._desk.attempts.of(prediction.id)
        if any(attempt.state.is_open for attempt in open_ones):
            await self._serve(prediction)  # nothing of it needs the channel to be well
            return True
        self._waiting = None
        if (other := self._well_route(prediction)) is not None:
            await self._desk.put_back(prediction, other)
        elif self._has_waited(prediction):
            reason = self._channel.health.trouble or f"{self._channel.name} is resting"
            failure = Failure(code=ErrorCode.UPSTREAM_FAILED, message=reason)
            await self._desk.refuse(prediction, failure)
        else:
            self._waiting = prediction
            await self._desk.put_back(prediction)
            return False
        return True

    def _must_wait(self, prediction: Prediction) -> bool:
        """Whether nothing has come up for one that waits: no claim is written to find that out."""
        return self._well_route(prediction) is None and not self._has_waited(prediction)

    def _well_route(self, prediction: Prediction) -> str | None:
        """Another route that does not rest."""
        other = self._other_route(prediction, {self._channel.name})
        channel = self._desk.channels.get(other or "")
        is_resting = channel is not None and channel.health.state is ChannelState.RESTING
        return None if is_resting else other

    async def _serve(self, prediction: Prediction) -> None:
        try:
            await self._submit_all(prediction)
        except Conflict as conflict:
            log.info("%s: %s", prediction.id, conflict.message)
            await self._desk.put_back(prediction)  # if it is still ours: look again from the start
        except FluxserveError as error:
            await self._desk.refuse(prediction, error.failure())
        except asyncio.CancelledError:
            raise  # what was sent is a row, and found again
        except Exception:
            log.exception("%s could not be submitted", prediction.id)
            text = "an unforeseen error came before the submission"
            failure = Failure(code=ErrorCode.INTERNAL, message=text)
            attempts = await self._desk.attempts.of(prediction.id)
            if not any(attempt.state.is_open for attempt in attempts):
                await self._desk.refuse(prediction, failure)
        finally:
            self._serving.pop((prediction.id, prediction.attempt), None)
            self._has_room()

    async def _submit_all(self, prediction: Prediction) -> None:
        """Adopt what was submitted before; submit the parts that nobody has."""
        # A first start has nothing behind it.
        is_first = prediction.attempt == 1
        earlier = () if is_first else await self._desk.attempts.of(prediction.id)
        held = [a for a in earlier if a.state.is_open]
        for attempt in held:
            await self._follower.adopt(attempt, prediction)
        model = self._model(prediction)
        per = self._channel.provider.outputs_max(model)
        parts = held[0].parts if held else math.ceil(prediction.request.num_outputs / per)
        taken = {attempt.part for attempt in held}
        for part in range(parts):
            if part not in taken and not await self._submit(prediction, model, part, parts):
                return

    def _model(self, prediction: Prediction) -> str:
        card = self._desk.catalog.card(prediction.request.model)
        theirs = self._channel.spec.their_model(card.names)
        if theirs is None:
            text = f"the upstream {self._channel.name} is not set up for {card.id}"
            raise UnknownModel(text, field="model")
        return theirs

    async def _submit(self, prediction: Prediction, model: str, part: int, parts: int) -> bool:
        """One part, from its inputs to the provider's answer; False when it was refused."""
        desk, channel = self._desk, self._channel
        token = new_id()
        try:
            order = await desk.order(prediction, channel, model, token, part)
            letter = await channel.provider.prepare(order)
        except Refused as refused:
            # As a row, so that no two channels send a prediction back and forth for ever.
            attempt = await self._intend(prediction, model, Letter(path=""), token, (part, parts))
            await self._refused(prediction, attempt, refused)
            return False
        attempt = await self._intend(prediction, model, letter, token, (part, parts))
        try:
            accepted = await self._post(attempt, order, letter)
        except Refused as refused:
            await self._refused(prediction, attempt, refused)
            return False
        except Declared as declared:
            ended = replace(
                attempt, state=AttemptState.FAILED, failure=declared.failure, next_at=None
            )
            log.error("%s: %s", prediction.id, declared.failure.message)
            await desk.close(attempt, ended)
            await desk.refuse(prediction, declared.failure)
            return False
        except Doubtful as doubt:
            await self._doubt(attempt, str(doubt))
            return True
        finally:
            desk.in_flight.discard(attempt.id)
        channel.health.went_well()
        channel.health.submitted += 1
        await self._accepted(attempt, accepted)
        return True

    async def _refused(self, prediction: Prediction, attempt: Attempt, refused: Refused) -> None:
        """It provably did not happen."""
        self._desk.in_flight.discard(attempt.id)
        sharper = self._judged(refused)
        failure = _failure_of(sharper)
        void = replace(
            attempt, state=AttemptState.VOID, failure=failure, refused=True, next_at=None
        )
        await self._desk.close(attempt, void)
        await self._after_refusal(prediction, sharper)

    async def _intend(
        self,
        prediction: Prediction,
        model: str,
        letter: Letter,
        token: str,
        share: tuple[int, int],
    ) -> Attempt:
        """Commit the intent: from here on the submission counts as possibly made."""
        spec = self._channel.spec
        at = self._desk.clock()
        longest_s = spec.submit_timeout_s + spec.connect_timeout_s + INTENT_MARGIN_S
        attempt = Attempt(
            id=token,
            prediction_id=prediction.id,
            fence=prediction.attempt,
            channel=spec.name,
            model=model,
            part=share[0],
            parts=share[1],
            created_at=at,
            next_at=at + self._desk.seconds(longest_s),
            facts=letter.facts,
        )
        lease_s = longest_s + spec.deadline_s + spec.reconcile_grace_s
        self._desk.in_flight.add(attempt.id)
        try:
            await self._desk.attempts.intend(attempt, at + self._desk.seconds(lease_s))
        except BaseException:
            self._desk.in_flight.discard(attempt.id)
            raise
        self._channel.health.open += 1
        return attempt

    async def _post(self, attempt: Attempt, order: Order, letter: Letter) -> Accepted:
        age_s = (self._desk.clock() - attempt.created_at).total_seconds()
        if age_s > FROZEN_S:
            raise Refused(Refusal.BROKEN, "this server was stopped before it could submit")
        began = time.monotonic()
        try:
            return await self._channel.provider.submit(letter, order)
        finally:
            log.debug("%s: the submission took %.3f s", attempt.id, time.monotonic() - began)

    async def _doubt(self, attempt: Attempt, reason: str) -> None:
        """The answer was lost: look the submission up soon."""
        health = self._channel.health
        health.unknown += 1
        health.had_trouble(reason, tolerated=TOLERATED)
        log.warning("%s: %s; looking it up", attempt.prediction_id, reason)
        failure = Failure(code=ErrorCode.UPSTREAM_UNKNOWN, message=reason)
        after = replace(
            attempt, state=AttemptState.UNKNOWN, failure=failure, next_at=self._desk.clock()
        )
        with contextlib.suppress(Conflict):
            await self._desk.learned(attempt, after)
        self._desk.due.set()

    async def _accepted(self, attempt: Attempt, accepted: Accepted) -> None:
        spec = self._channel.spec
        next_at = self._desk.clock() + pause(self._channel, 0, 0, random.random)
        after = replace(
            attempt,
            state=AttemptState.ACCEPTED,
            upstream_id=accepted.ticket.upstream_id,
            poll_url=accepted.ticket.poll_url,
            cost_micro=accepted.cost_micro or 0,
            next_at=next_at,
        )
        try:
            saved = await self._desk.learned(attempt, after)
        except Conflict as conflict:
            # A callback was faster, or the prediction ended and somebody looked it up meanwhile.
            log.info("%s: %s", attempt.prediction_id, conflict.message)
            return
        log.info("%s was accepted by %s", attempt.prediction_id, spec.name)
        if isinstance(accepted.state, Working):
            self._desk.expect(next_at)
        else:
            await self._follower.settle(saved, accepted.state, self._channel)

    def _judged(self, refused: Refused) -> Refused:
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

    async def _after_refusal(self, prediction: Prediction, refused: Refused) -> None:
        """Nothing was submitted: another route, or later, or the end."""
        earlier = await self._desk.attempts.of(prediction.id)
        tried = {a.channel for a in earlier if a.refused} | {self._channel.name}
        other = None
        if refused.kind is not Refusal.CONTENT:
            other = self._other_route(prediction, tried)
        if other is not None:
            log.info("%s goes on to %s", prediction.id, other)
            await self._desk.put_back(prediction, other)
        elif refused.kind.passes and not self._has_waited(prediction):
            await self._desk.put_back(prediction)
        else:
            await self._desk.refuse(prediction, _failure_of(refused))

    def _other_route(self, prediction: Prediction, tried: set[str]) -> str | None:
        card = self._desk.catalog.card(prediction.request.model)
        try:
            return self._desk.router.choose(card, prediction.request, but=sorted(tried))
        except Unavailable:
            return None

    def _has_waited(self, prediction: Prediction) -> bool:
        age_s = (self._desk.clock() - prediction.created_at).total_seconds()
        return age_s >= self._channel.spec.patience_s


_CODES = {
    Refusal.CONTENT: ErrorCode.INPUT_REFUSED,
    Refusal.RATE: ErrorCode.RATE_LIMITED,
}


def _failure_of(refused: Refused) -> Failure:
    code = _CODES.get(refused.kind, ErrorCode.UPSTREAM_FAILED)
    return Failure(code=code, message=refused.message, retry_after_s=refused.retry_after_s)
