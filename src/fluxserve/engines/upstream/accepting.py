"""Writes down that a provider took a submission, whatever others thought of it meanwhile."""

import logging
from dataclasses import replace
from datetime import datetime

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import Conflict
from fluxserve.engines.upstream.answers import Accepted, Ticket
from fluxserve.engines.upstream.base import Desk

log = logging.getLogger(__name__)

TRIES = 5  # others may move the row at the same time

A = AttemptState


async def accept(
    desk: Desk, attempt: Attempt, accepted: Accepted, next_at: datetime
) -> Attempt | None:
    """The attempt with what the provider said, polled at `next_at`; None when it is closed.

    The answer itself is proof: it goes before the doubt of whoever looked in between.
    """
    ticket = accepted.ticket
    now = attempt
    for _ in range(TRIES):
        after = _after(now, accepted, next_at)
        if after is None:
            break
        try:
            saved = await desk.learned(now, after)
        except Conflict:
            now = await desk.attempts.get(attempt.id)
        else:
            log.info("%s was accepted by %s", attempt.prediction_id, attempt.channel)
            return saved
    _tell_late(now, ticket)
    return None


def _after(now: Attempt, accepted: Accepted, next_at: datetime) -> Attempt | None:
    ticket = accepted.ticket
    after = replace(
        now,
        upstream_id=ticket.upstream_id,
        poll_url=ticket.poll_url,
        cost_micro=accepted.cost_micro or now.cost_micro,
    )
    if now.state in (A.INTENT, A.UNKNOWN):
        return replace(after, state=A.ACCEPTED, failure=None, next_at=next_at)
    # A callback or a look-up was faster, and knows less.
    is_same = now.state is A.ACCEPTED and now.upstream_id == ticket.upstream_id
    return after if is_same else None


def _tell_late(now: Attempt, ticket: Ticket) -> None:
    """The answer changes nothing any more."""
    if now.upstream_id == ticket.upstream_id:
        log.info("%s is %s already", now.prediction_id, now.state)
        return
    log.error(
        "%s: %s took it as %s, after it was given up here as %s: it may be paid for twice",
        now.prediction_id,
        now.channel,
        ticket.upstream_id,
        now.upstream_id or now.state,
    )
