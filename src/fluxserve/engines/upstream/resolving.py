"""What became of a submission whose answer was lost: looked up, never repeated on suspicion."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import Conflict, ErrorCode, Failure, FluxserveError, NotFound
from fluxserve.core.prediction import Prediction
from fluxserve.engines.upstream.answers import (
    REMEMBERED_S,
    Accepted,
    Declared,
    Lookup,
    Lost,
    Order,
    PollLie,
    PollTrouble,
)
from fluxserve.engines.upstream.base import Channel, Desk, gone, is_ours
from fluxserve.engines.upstream.channel import OnUnknown

log = logging.getLogger(__name__)

LOOK_MAX_S = 5.0  # between two looks within the grace period
# Past the deadline, and this many calls in a row without an answer: given up. One alone may mean
# no more than that this server has been away, and that the network is not up yet.
TROUBLES_MAX = 20
LOOKED = "looked"  # a fact: when a look-up first came back with nothing


async def look_up(
    desk: Desk, attempt: Attempt, prediction: Prediction | None, channel: Channel
) -> None:
    """One look for an attempt in state UNKNOWN, and what follows from it."""

    async def order() -> Order:
        if prediction is None:
            raise PollTrouble("the prediction was deleted")
        return await desk.order(prediction, channel, attempt.model, attempt.id, attempt.part)

    async def taken(upstream_ids: Sequence[str]) -> frozenset[str]:
        return await desk.attempts.bound_ids(channel.name, upstream_ids)

    lost = Lost(
        token=attempt.id,
        model=attempt.model,
        created_at=attempt.created_at,
        age_s=_age_s(desk, attempt),
        facts=attempt.facts,
        order=order,
    )
    try:
        found = await channel.provider.find(lost, taken)
    except Conflict:
        raise  # somebody else has it in hand
    except (PollTrouble, PollLie, Declared, FluxserveError) as trouble:
        # Whatever it says, it says nothing of the submission that was lost.
        await _again(desk, attempt, prediction, channel, str(trouble))
        return
    match found:
        case Accepted():
            await _bind(desk, attempt, found, channel)
        case Lookup.ABSENT:
            await _absent(desk, attempt, prediction, channel)
        case Lookup.IMPOSSIBLE:
            await _impossible(desk, attempt, prediction, channel)


async def decide(desk: Desk, attempt: Attempt, upstream_id: str | None) -> Attempt:
    """What an operator found out about an unknown attempt. Conflict, NotFound."""
    if upstream_id is None:
        if await _void(desk, attempt, await _prediction(desk, attempt)) is None:
            raise Conflict("the submission moved at this very moment: look again")
        log.info("%s: an operator says that it never happened", attempt.prediction_id)
        return await desk.attempts.get(attempt.id)
    if attempt.channel not in desk.channels:
        raise Conflict(gone(attempt.channel).message)
    after = replace(
        attempt,
        state=AttemptState.ACCEPTED,
        upstream_id=upstream_id,
        failure=None,
        next_at=desk.clock(),
        trouble=0,
    )
    saved = await desk.attempts.move(attempt, after)
    log.info("%s: an operator says that it is %s", attempt.prediction_id, upstream_id)
    desk.due.set()
    return saved


async def _prediction(desk: Desk, attempt: Attempt) -> Prediction | None:
    try:
        return await desk.store.get(attempt.prediction_id)
    except NotFound:
        return None


async def _bind(desk: Desk, attempt: Attempt, found: Accepted, channel: Channel) -> None:
    after = replace(
        attempt,
        state=AttemptState.ACCEPTED,
        upstream_id=found.ticket.upstream_id,
        poll_url=found.ticket.poll_url,
        cost_micro=found.cost_micro or attempt.cost_micro,
        failure=None,
        next_at=desk.clock(),
        trouble=0,
    )
    try:
        await desk.attempts.move(attempt, after)
    except Conflict:
        # An equal request whose answer was lost too took this job: there is another one for us.
        await _later(desk, attempt, 0.1)
        return
    log.info("%s was found again at %s", attempt.prediction_id, channel.name)
    desk.due.set()


async def _absent(
    desk: Desk, attempt: Attempt, prediction: Prediction | None, channel: Channel
) -> None:
    """Not in the provider's list: after the grace period that proves that it never happened."""
    if _age_s(desk, attempt) > REMEMBERED_S:
        await _impossible(desk, attempt, prediction, channel)
        return
    left_s = _left_s(desk, attempt, channel)
    if left_s > 0:
        step_s = min(LOOK_MAX_S, channel.spec.reconcile_grace_s / 4)
        await _wait(desk, attempt, min(step_s, left_s))
        return
    log.info("%s never reached %s; it is submitted again", attempt.prediction_id, channel.name)
    await _void(desk, attempt, prediction)


async def _impossible(
    desk: Desk, attempt: Attempt, prediction: Prediction | None, channel: Channel
) -> None:
    """The provider cannot be asked: a callback may still tell; else the operator's rule holds."""
    left_s = _left_s(desk, attempt, channel)
    if desk.callback_url(channel, attempt.id) and left_s > 0:
        await _wait(desk, attempt, left_s)
    else:
        await _give_up(desk, attempt, prediction, channel)


async def _again(
    desk: Desk, attempt: Attempt, prediction: Prediction | None, channel: Channel, reason: str
) -> None:
    troubles = attempt.trouble + 1
    if troubles >= TROUBLES_MAX and _age_s(desk, attempt) > channel.spec.deadline_s:
        await _give_up(desk, attempt, prediction, channel)
        return
    if attempt.trouble == 0:
        log.warning("%s: the look-up failed: %s", attempt.prediction_id, reason)
    after = replace(attempt, trouble=troubles)
    wait_s = min(channel.spec.poll_max_s, channel.spec.poll_s * 2.0 ** min(troubles, 10))
    await _later(desk, after, wait_s, attempt)


async def _give_up(
    desk: Desk, attempt: Attempt, prediction: Prediction | None, channel: Channel
) -> None:
    """Nobody can tell: as `on_unknown` of the channel says."""
    if channel.spec.on_unknown is OnUnknown.RESUBMIT:
        channel.health.resubmitted += 1
        log.warning(
            "%s may have reached %s; it is submitted again, as on_unknown says",
            attempt.prediction_id,
            channel.name,
        )
        await _void(desk, attempt, prediction)
        return
    reason = attempt.failure.message if attempt.failure else "the server stopped"
    text = f"it is not known whether {channel.name} took the request ({reason}); not repeated"
    failure = Failure(code=ErrorCode.UPSTREAM_UNKNOWN, message=text)
    if attempt.failure is None:  # else the log said so when the answer was lost
        log.error("%s: %s", attempt.prediction_id, text)
    if prediction is not None and is_ours(prediction, attempt):
        await desk.refuse(prediction, failure)
    now = await _prediction(desk, attempt)
    is_over = now is None or now.is_terminal  # else the start to come looks once more
    given_up = replace(attempt, failure=failure, next_at=None)
    # It stays unknown, to be seen and reviewed; a late callback still brings it to its end.
    await desk.close(attempt, given_up.without_words() if is_over else given_up)


async def _void(desk: Desk, attempt: Attempt, prediction: Prediction | None) -> Attempt | None:
    """It never happened; None when somebody else moved the attempt first."""
    void = replace(attempt, state=AttemptState.VOID, next_at=None)
    saved = await desk.close(attempt, void)
    if saved is not None and prediction is not None and is_ours(prediction, attempt):
        await desk.put_back(prediction)
    return saved


def _left_s(desk: Desk, attempt: Attempt, channel: Channel) -> float:
    """What is left of the grace period, which begins with the first look that came to nothing.

    That look comes after the answer was lost, however long the submission took until then: not
    before, the provider may still have been at it.
    """
    now = desk.clock()
    looked = attempt.facts.get(LOOKED)
    since = datetime.fromisoformat(looked) if looked else now
    return channel.spec.reconcile_grace_s - (now - since).total_seconds()


async def _wait(desk: Desk, attempt: Attempt, wait_s: float) -> None:
    """Another look within the grace period."""
    facts = {LOOKED: desk.clock().isoformat(), **attempt.facts}
    await _later(desk, replace(attempt, trouble=0, facts=facts), wait_s, attempt)


async def _later(
    desk: Desk, attempt: Attempt, wait_s: float, before: Attempt | None = None
) -> None:
    at = desk.clock() + timedelta(seconds=wait_s)
    with contextlib.suppress(Conflict):
        await desk.attempts.move(before or attempt, replace(attempt, next_at=at))
        desk.expect(at)


def _age_s(desk: Desk, attempt: Attempt) -> float:
    return (desk.clock() - attempt.created_at).total_seconds()
