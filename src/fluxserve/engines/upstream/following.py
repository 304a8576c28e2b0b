"""Follows submissions to their end: polls, look-ups, downloads; all of it driven by due rows."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import Conflict, ErrorCode, Failure, NotFound
from fluxserve.core.outcomes import Save
from fluxserve.core.prediction import OutputImage, Prediction, PredictionStatus
from fluxserve.core.request import JSON
from fluxserve.engines.upstream.answers import (
    Ended,
    Finished,
    PollLie,
    PollTrouble,
    State,
    Working,
)
from fluxserve.engines.upstream.base import (
    OWNER,
    Channel,
    Desk,
    gone,
    is_ours,
    pause,
    ticket_of,
)
from fluxserve.engines.upstream.cancelling import HEARD, cancel
from fluxserve.engines.upstream.due import DueRows
from fluxserve.engines.upstream.pictures import collect
from fluxserve.engines.upstream.resolving import TROUBLES_MAX, look_up
from fluxserve.engines.upstream.showing import show

log = logging.getLogger(__name__)

LIES_MAX = 3  # senseless answers before a job is given up, without a sensible one in between
LIES = "lies"  # a fact: how many there were
WAIT_FOR_CLAIM_S = 2.0  # a prediction that is being claimed again is looked at this much later
ORPHAN_LOOK_S = 60.0
ORPHAN_S = 3600.0  # submissions of a channel that is configured no longer are given up then

A = AttemptState
# What was fetched stays paid for, though the prediction failed for want of its other parts.
AFTER_ORPHAN = {A.ACCEPTED: A.FAILED, A.INTENT: A.UNKNOWN, A.FETCHED: A.DONE}


class Follower:
    """Works off due rows; any number of processes may run one."""

    def __init__(self, desk: Desk, *, is_alone: bool) -> None:
        self._desk = desk
        self._rows = DueRows(desk, self.follow, is_alone=is_alone)
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._loop = asyncio.create_task(self._rows.run(), name="follow submissions")

    async def stop(self) -> None:
        if self._loop:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._rows.stop()

    async def follow(self, attempt: Attempt) -> bool:
        """One turn for one due attempt; False when its row stays as it is."""
        if attempt.id in self._desk.in_flight:
            return False  # its POST is under way in this process
        prediction = await self._prediction(attempt)
        if attempt.state is A.FETCHED:
            await self._gather(attempt, prediction)  # what is here needs no channel
            return True
        channel = self._desk.channels.get(attempt.channel)
        if channel is None:
            await self._orphaned(attempt, prediction)
            return True
        match attempt.state:
            case A.INTENT:
                doubted = replace(attempt, state=A.UNKNOWN)
                doubted = await self._desk.attempts.move(attempt, doubted)
                channel.health.unknown += 1
                await look_up(self._desk, doubted, prediction, channel)
            case A.UNKNOWN:
                await look_up(self._desk, attempt, prediction, channel)
            case A.ACCEPTED:
                await self._poll(attempt, prediction, channel)
            case _:
                return False
        return True

    async def adopt(self, attempt: Attempt, prediction: Prediction) -> None:
        """The prediction was claimed again: its open attempts belong to the new start."""
        is_lost = attempt.state is A.INTENT and attempt.id not in self._desk.in_flight
        state = A.UNKNOWN if is_lost else attempt.state
        at = self._desk.clock()
        after = replace(attempt, fence=prediction.attempt, state=state, next_at=at)
        await self._desk.attempts.move(attempt, after)
        channel = self._desk.channels.get(attempt.channel)
        lease_s = channel.spec.deadline_s if channel else 60.0
        until = at + self._desk.seconds(lease_s)
        await self._desk.store.renew(prediction, owner=OWNER, lease_until=until)
        self._desk.due.set()

    # --- polling ---------------------------------------------------------------------------------

    async def _poll(
        self, attempt: Attempt, prediction: Prediction | None, channel: Channel
    ) -> None:
        if prediction is not None and not prediction.is_terminal:
            if not is_ours(prediction, attempt):
                await self._later(attempt, self._desk.seconds(WAIT_FOR_CLAIM_S))
                return
        elif HEARD not in attempt.facts and not _is_done(prediction):
            attempt = await cancel(self._desk, attempt, channel)
        try:
            state = await channel.provider.poll(ticket_of(attempt))
        except PollTrouble as trouble:
            await self._troubled(attempt, prediction, channel, str(trouble), trouble.retry_after_s)
            return
        except PollLie as lie:
            await self._lied(attempt, prediction, channel, str(lie))
            return
        if isinstance(state, Working):
            await self._working(attempt, prediction, channel, state)
        else:
            await self.settle(attempt, state, channel)

    async def _working(
        self,
        attempt: Attempt,
        prediction: Prediction | None,
        channel: Channel,
        state: Working,
    ) -> None:
        if await self._is_too_late(attempt, prediction, channel):
            return
        if prediction is not None and is_ours(prediction, attempt):
            await show(self._desk, attempt, prediction, channel, state)
        facts = {name: fact for name, fact in attempt.facts.items() if name != LIES}
        after = replace(attempt, polls=attempt.polls + 1, trouble=0, facts=facts)
        await self._later(after, pause(channel, after.polls, 0, random.random))

    async def _troubled(
        self,
        attempt: Attempt,
        prediction: Prediction | None,
        channel: Channel,
        reason: str,
        wait_s: float | None,
    ) -> None:
        """The provider could not be asked: later again, up to the deadline.

        The first troubles after it end nothing: the job may be done since long ago, and it is this
        server that was away.
        """
        if attempt.trouble == 0:
            log.warning("%s: %s; asking again", attempt.prediction_id, reason)
        await self._ask_again(attempt, prediction, channel, wait_s)

    async def _ask_again(
        self,
        attempt: Attempt,
        prediction: Prediction | None,
        channel: Channel,
        wait_s: float | None,
    ) -> None:
        after = replace(attempt, polls=attempt.polls + 1, trouble=attempt.trouble + 1)
        is_long = after.trouble >= TROUBLES_MAX
        if is_long and await self._is_too_late(attempt, prediction, channel):
            return
        later = pause(channel, after.polls, after.trouble, random.random)
        if wait_s is not None:
            later = self._desk.seconds(min(max(wait_s, 0.1), channel.spec.cool_down_max_s))
        await self._later(after, later)

    async def _is_too_late(
        self, attempt: Attempt, prediction: Prediction | None, channel: Channel
    ) -> bool:
        """Whether the job was given up because it takes too long."""
        age_s = (self._desk.clock() - attempt.created_at).total_seconds()
        if age_s < channel.spec.deadline_s:
            return False
        text = f"{channel.name} did not finish within {channel.spec.deadline_s:g} s"
        failure = Failure(code=ErrorCode.TIMED_OUT, message=text)
        with contextlib.suppress(PollTrouble, PollLie):
            await channel.provider.cancel(ticket_of(attempt))
        await self._fail(attempt, prediction, failure)
        return True

    async def _lied(
        self, attempt: Attempt, prediction: Prediction | None, channel: Channel, reason: str
    ) -> None:
        """An answer made no sense: asked for again twice, then the job is given up."""
        lies = int(attempt.facts.get(LIES, "0")) + 1
        if lies >= LIES_MAX:
            await self._lost(attempt, prediction, channel, reason)
            return
        log.info("%s: %s; asking again", attempt.prediction_id, reason)
        noted = replace(attempt, facts={**attempt.facts, LIES: str(lies)})
        await self._ask_again(noted, prediction, channel, None)

    async def _lost(
        self, attempt: Attempt, prediction: Prediction | None, channel: Channel, reason: str
    ) -> None:
        log.error("%s: given up at %s: %s", attempt.prediction_id, channel.name, reason)
        failure = Failure(code=ErrorCode.UPSTREAM_FAILED, message=reason)
        await self._fail(attempt, prediction, failure)

    # --- the end ---------------------------------------------------------------------------------

    async def settle(self, attempt: Attempt, state: State, channel: Channel) -> None:
        """The provider is done with an accepted attempt."""
        prediction = await self._prediction(attempt)
        if isinstance(state, Working):
            await self._working(attempt, prediction, channel, state)
        elif isinstance(state, Ended):
            await self._ended(attempt, prediction, state)
        elif prediction is None or prediction.is_terminal:
            await self._desk.close(attempt, self._paid(attempt, state))
        elif is_ours(prediction, attempt) or not channel.provider.can_poll:
            await self._finished(attempt, prediction, channel, state)
        else:
            await self._later(attempt, self._desk.seconds(WAIT_FOR_CLAIM_S))

    async def _ended(self, attempt: Attempt, prediction: Prediction | None, state: Ended) -> None:
        now = prediction
        if prediction is not None:
            metrics = {**prediction.metrics, **state.metrics}
            logs = state.logs or prediction.logs
            now = replace(prediction, logs=logs, metrics=metrics)
        if not await self._refuse(attempt, now, state.failure):
            return
        after = replace(
            attempt,
            state=A.CANCELED if state.is_canceled else A.FAILED,
            failure=state.failure,
            cost_micro=state.cost_micro,
            next_at=None,
        )
        await self._desk.close(attempt, after)

    async def _finished(
        self, attempt: Attempt, prediction: Prediction, channel: Channel, state: Finished
    ) -> None:
        try:
            kept = await collect(self._desk, prediction, attempt, channel, state)
        except (PollTrouble, PollLie) as error:
            if not channel.provider.can_poll:
                await self._lost(attempt, prediction, channel, str(error))
            elif isinstance(error, PollLie):
                await self._lied(attempt, prediction, channel, str(error))
            else:
                await self._troubled(attempt, prediction, channel, str(error), None)
            return
        outputs = tuple(image for image, _ in kept)
        paid = replace(self._paid(attempt, state), outputs=outputs)
        if attempt.parts > 1:
            for _, event in kept:
                await self._desk.outcomes.tell(prediction, event)
            fetched = replace(paid, state=A.FETCHED, next_at=self._desk.clock())
            saved = await self._desk.close(attempt, fetched)
            if saved is not None:
                await self._gather(saved, prediction)
            return
        logs = state.logs or f"Using seed: {prediction.request.seed}\n"
        now = replace(prediction, logs=logs)
        save = self._desk.ending(attempt, paid, [event for _, event in kept])
        if await self._succeed(now, attempt, outputs, state.metrics, save):
            return
        if await self._is_over(attempt):
            await self._desk.close(attempt, paid)  # the caller turned away: the bill stays
        else:  # its lease was lost meanwhile: the start to come finds the pictures here
            at = self._desk.clock() + self._desk.seconds(WAIT_FOR_CLAIM_S)
            await self._desk.close(attempt, replace(paid, state=A.FETCHED, next_at=at))

    async def _gather(self, attempt: Attempt, prediction: Prediction | None) -> None:
        """A part is here: when all of them are, the prediction is done."""
        done = replace(attempt, state=A.DONE, next_at=None)
        if prediction is None or prediction.is_terminal:
            await self._desk.close(attempt, done)
            return
        parts = {a.part: a for a in await self._desk.attempts.of(prediction.id)
                 if a.state in (A.FETCHED, A.DONE)}  # fmt: skip
        is_whole = len(parts) >= attempt.parts
        if not is_whole and attempt.channel not in self._desk.channels:
            await self._orphaned(attempt, prediction)
            return
        if not is_whole or not is_ours(prediction, attempt):
            await self._later(attempt, self._desk.seconds(WAIT_FOR_CLAIM_S))
            return
        outputs = [output for part in sorted(parts) for output in parts[part].outputs]
        logs = f"Using seed: {prediction.request.seed}\n"
        is_told = await self._succeed(replace(prediction, logs=logs), attempt, outputs, {})
        if not is_told and not await self._is_over(attempt):
            await self._later(attempt, self._desk.seconds(WAIT_FOR_CLAIM_S))
            return
        for part in parts.values():
            await self._desk.close(part, replace(part, state=A.DONE, next_at=None))

    async def _succeed(
        self,
        prediction: Prediction,
        attempt: Attempt,
        outputs: Sequence[OutputImage],
        metrics: Mapping[str, JSON],
        save: Save | None = None,
    ) -> bool:
        """False when the prediction has moved on, or is gone."""
        facts: dict[str, JSON] = {**metrics, "image_count": len(outputs)}
        if prediction.started_at is not None:
            seconds = (self._desk.clock() - prediction.started_at).total_seconds()
            facts.setdefault("predict_s", round(seconds, 6))
        served = replace(prediction, served_by=_server(attempt))
        try:
            await self._desk.outcomes.succeed(served, outputs, facts, save)
        except (Conflict, NotFound):
            return False
        log.info("%s succeeded at %s", prediction.id, attempt.channel)
        return True

    def _paid(self, attempt: Attempt, state: Finished) -> Attempt:
        cost = attempt.cost_micro if state.cost_micro is None else state.cost_micro
        return replace(attempt, state=A.DONE, cost_micro=cost, next_at=None)

    async def _fail(
        self, attempt: Attempt, prediction: Prediction | None, failure: Failure
    ) -> None:
        if await self._refuse(attempt, prediction, failure):
            ended = replace(attempt, state=A.FAILED, failure=failure, next_at=None)
            await self._desk.close(attempt, ended)

    async def _refuse(
        self, attempt: Attempt, prediction: Prediction | None, failure: Failure
    ) -> bool:
        """End the prediction; False, and its row is due later, when a new start is to do that.

        Were the attempt closed without it, that start would submit once more.
        """
        if prediction is not None and is_ours(prediction, attempt):
            now = replace(prediction, served_by=_server(attempt))
            if await self._desk.refuse(now, failure):
                return True
        if await self._is_over(attempt):
            return True
        await self._later(attempt, self._desk.seconds(WAIT_FOR_CLAIM_S))
        return False

    async def _is_over(self, attempt: Attempt) -> bool:
        """Whether nobody waits for the attempt any more."""
        prediction = await self._prediction(attempt)
        return prediction is None or prediction.is_terminal

    async def _orphaned(self, attempt: Attempt, prediction: Prediction | None) -> None:
        """Its channel was taken out of the configuration: wait for it a while.

        While another server has it, for as long as that follows the job.
        """
        age_s = (self._desk.clock() - attempt.created_at).total_seconds()
        if age_s < ORPHAN_S or self._desk.is_elsewhere(attempt.channel):
            await self._later(attempt, self._desk.seconds(ORPHAN_LOOK_S))
            return
        if not await self._refuse(attempt, prediction, gone(attempt.channel)):
            return
        state = AFTER_ORPHAN.get(attempt.state, attempt.state)
        await self._desk.close(attempt, replace(attempt, state=state, next_at=None))

    async def _later(self, attempt: Attempt, wait: timedelta) -> None:
        at = self._desk.clock() + wait
        await self._desk.attempts.move(attempt, replace(attempt, next_at=at))
        self._desk.expect(at)

    async def _prediction(self, attempt: Attempt) -> Prediction | None:
        try:
            return await self._desk.store.get(attempt.prediction_id)
        except NotFound:
            return None


def _is_done(prediction: Prediction | None) -> bool:
    return prediction is not None and prediction.status is PredictionStatus.SUCCEEDED


def _server(attempt: Attempt) -> str:
    return f"{attempt.channel}: {attempt.model}"
