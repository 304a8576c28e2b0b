"""Takes queued predictions to their channel: an intent is committed, then one POST is sent."""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
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
from fluxserve.engines.upstream.accepting import accept
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
from fluxserve.engines.upstream.base import OWNER, Channel, Desk, pause, persistently
from fluxserve.engines.upstream.following import Follower
from fluxserve.engines.upstream.keeping import while_ours
from fluxserve.engines.upstream.overflow import Overflow
from fluxserve.engines.upstream.recourse import Recourse, failure_of, is_resting

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
        self._overflow = Overflow(desk, channel, self._begin)
        self._recourse = Recourse(desk, channel, self._begin)
        self._wake = asyncio.Event()
        # By start and not by id: after a lost lease two starts may meet for a moment.
        self._serving: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._wants_room = False

    async def start(self) -> None:
        self._channel.on_room = self._has_room
        name = f"claim {self._channel.name}"
        self._loop = asyncio.create_task(self._claim_forever(), name=name)

    async def stop(self) -> None:
        """Claim no more; let POSTs that are under way come back, for as long as a stop may take."""
        if self._loop:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self._recourse.stop()
        if self._serving:
            await asyncio.wait(self._serving.values(), timeout=self._desk.drain_s)
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
            rests = is_resting(self._channel)
            room = min(self._channel.health.room, SUBMITS_MAX) - len(self._serving)
            self._wants_room = not rests and room <= 0
            is_over = self._wants_room and self._overflow.is_promising()
            if self._wants_room and not is_over:
                return
            if self._recourse.must_wait():
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
            if rests and not await self._recourse.divert(prediction):
                return
            if not rests:
                self._begin(prediction)

    def _begin(self, prediction: Prediction) -> None:
        task = asyncio.create_task(self._serve(prediction), name=f"send {prediction.id}")
        self._serving[prediction.id, prediction.attempt] = task

    async def _serve(self, prediction: Prediction) -> None:
        try:
            await self._submit_all(prediction)
        except Conflict as conflict:
            log.info("%s: %s", prediction.id, conflict.message)
            # If it is still ours: look again from the start.
            await self._until_written(lambda: self._desk.put_back(prediction))
        except Exception as error:
            await self._stumbled(prediction, error)
        finally:
            self._serving.pop((prediction.id, prediction.attempt), None)
            self._has_room()

    async def _stumbled(self, prediction: Prediction, error: Exception) -> None:
        """What is here failed, before a submission or after it; the prediction need not."""
        failure = Failure(code=ErrorCode.INTERNAL, message="an unforeseen error came in between")
        if isinstance(error, FluxserveError):
            failure = error.failure()
            log.warning("%s: %s", prediction.id, error.message)
        else:
            log.error("%s could not be submitted", prediction.id, exc_info=error)
        await self._until_written(lambda: self._go_on_or_end(prediction, error, failure))

    async def _until_written(self, work: Callable[[], Awaitable[None]]) -> None:
        """`work` again and again while the database does not answer and the server goes on."""
        while True:
            try:
                await work()
                return
            except Unavailable:
                if not await self._recourse.pause(LOOK_S):
                    return  # its lease brings it back

    async def _go_on_or_end(
        self, prediction: Prediction, error: Exception, failure: Failure
    ) -> None:
        held = [a for a in await self._desk.attempts.of(prediction.id) if a.state.is_open]
        if is_whole(held):
            return  # it is followed, or looked up, to its end
        # What is unforeseen would come every time, unless something was submitted before it.
        is_known = isinstance(error, FluxserveError)
        may_pass = isinstance(error, Unavailable) or (bool(held) and not is_known)
        if may_pass and not self._recourse.has_waited(prediction, held):
            await self._recourse.pause(LOOK_S)
            await self._desk.put_back(prediction)
        else:
            await self._desk.refuse(prediction, failure)

    async def _submit_all(self, prediction: Prediction) -> None:
        """Adopt what was submitted before; submit the parts that nobody has."""
        # A first start has nothing behind it.
        is_first = prediction.attempt == 1
        earlier = () if is_first else await self._desk.attempts.of(prediction.id)
        held = [attempt for attempt in earlier if attempt.state.is_open]
        if not await self._adopt_all(held, prediction):
            return
        model = held[0].model if held else self._model(prediction)
        pictures, per = prediction.request.num_outputs, self._channel.provider.outputs_max(model)
        parts = math.ceil(pictures / per)
        if held and parts != held[0].parts:
            text = f"{pictures} pictures were begun in {held[0].parts} parts, not in {parts}"
            failure = Failure(code=ErrorCode.UPSTREAM_FAILED, message=text)
            await self._desk.refuse(prediction, failure)
            return
        taken = {attempt.part for attempt in held}
        for part in range(parts):
            if part in taken:
                continue
            if not held:
                sent = await self._submit(prediction, model, part, parts)
            else:
                async with self._recourse.rested(prediction, held) as is_well:
                    sent = await self._submit(prediction, model, part, parts) if is_well else None
            if sent is None:
                return
            held.append(sent)

    async def _adopt_all(self, held: Sequence[Attempt], prediction: Prediction) -> bool:
        """Take over what is open; whether parts are missing, and to be submitted here."""
        has_all = is_whole(held)
        is_ours = all(attempt.channel == self._channel.name for attempt in held)
        if not has_all and not is_ours and held[0].channel in self._desk.channels:
            await self._desk.put_back(prediction, held[0].channel)
            return False
        for attempt in held:
            await self._follower.adopt(attempt, prediction)
        return not has_all and is_ours

    def _model(self, prediction: Prediction) -> str:
        card = self._desk.catalog.card(prediction.request.model)
        theirs = self._channel.spec.their_model(card.names)
        if theirs is None:
            text = f"the upstream {self._channel.name} is not set up for {card.id}"
            raise UnknownModel(text, field="model")
        return theirs

    async def _submit(
        self, prediction: Prediction, model: str, part: int, parts: int
    ) -> Attempt | None:
        """One part, from its inputs to the provider's answer; None when it was refused."""
        desk, channel = self._desk, self._channel
        token = new_id()
        try:
            ready = self._ready(prediction, model, token, part)
            order, letter = await while_ours(desk, prediction, ready)
        except Refused as refused:
            # As a row, so that no two channels send a prediction back and forth for ever.
            attempt = await self._intend(prediction, model, Letter(path=""), token, (part, parts))
            await self._refused(prediction, attempt, refused)
            return None
        attempt = await self._intend(prediction, model, letter, token, (part, parts))
        try:
            accepted = await self._post(attempt, order, letter)
            channel.health.went_well()
            channel.health.submitted += 1
            await self._accepted(attempt, accepted)
        except Refused as refused:
            await self._refused(prediction, attempt, refused)
            return None
        except Declared as declared:
            ended = replace(
                attempt, state=AttemptState.FAILED, failure=declared.failure, next_at=None
            )
            log.error("%s: %s", prediction.id, declared.failure.message)
            await desk.close(attempt, ended)
            await desk.refuse(prediction, declared.failure)
            return None
        except Doubtful as doubt:
            await self._doubt(attempt, str(doubt))
            return attempt
        except asyncio.CancelledError:
            self._cut(prediction)
            raise
        finally:
            desk.in_flight.discard(attempt.id)
        return attempt

    async def _ready(
        self, prediction: Prediction, model: str, token: str, part: int
    ) -> tuple[Order, Letter]:
        order = await self._desk.order(prediction, self._channel, model, token, part)
        return order, await self._channel.provider.prepare(order)

    def _cut(self, prediction: Prediction) -> None:
        """The server stops in the middle of a submission that is paid for."""
        name = self._channel.name
        fate = "it is looked up at the next start"
        if not self._channel.provider.can_poll:
            fate = f"its pictures are lost, though paid for: dispatch.drain_s is short for {name}"
        log.warning("%s was cut off before %s had answered: %s", prediction.id, name, fate)

    async def _refused(self, prediction: Prediction, attempt: Attempt, refused: Refused) -> None:
        """It provably did not happen."""
        self._desk.in_flight.discard(attempt.id)
        sharper = self._recourse.judged(refused)
        failure = failure_of(sharper)
        void = replace(
            attempt, state=AttemptState.VOID, failure=failure, refused=True, next_at=None
        )
        await self._desk.close(attempt, void)
        await self._recourse.after(prediction, sharper)

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
        wait = pause(self._channel, 0, 0, random.random)
        if not self._channel.provider.can_poll:
            wait = self._desk.seconds(self._desk.lease_s)  # to bring in what came with the answer
        next_at = self._desk.clock() + wait
        saved = await accept(self._desk, attempt, accepted, next_at)
        if saved is None:
            return
        if isinstance(accepted.state, Working):
            self._desk.expect(next_at)
        else:
            state = accepted.state
            await persistently(lambda: self._follower.settle(saved, state, self._channel))


def is_whole(held: Sequence[Attempt]) -> bool:
    """Whether no part of a prediction is missing among its open submissions."""
    return bool(held) and len({attempt.part for attempt in held}) == held[0].parts
