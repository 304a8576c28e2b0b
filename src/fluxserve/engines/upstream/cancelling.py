"""Tells a provider that the caller has turned away."""

import logging
from dataclasses import replace
from typing import Final

from fluxserve.core.attempts import Attempt
from fluxserve.core.errors import Conflict
from fluxserve.engines.upstream.answers import PollLie, PollTrouble
from fluxserve.engines.upstream.base import Channel, Desk, ticket_of

log = logging.getLogger(__name__)

CANCELS_MAX: Final = 10  # tries to tell of a cancel to a provider that does not answer it
CANCELS: Final = "cancels"  # a fact: how many there were
HEARD: Final = "cancel"  # a fact: the provider knows, or never will


async def cancel(desk: Desk, attempt: Attempt, channel: Channel) -> Attempt:
    """Tell the provider; then its work is followed quietly to the bill.

    Told with every poll until it answers, for a while: what it does not hear of is made, and
    billed; where it can never be told, telling it would only disturb the polls.
    """
    try:
        if await channel.provider.cancel(ticket_of(attempt)):
            log.info("%s was canceled at %s", attempt.prediction_id, channel.name)
    except PollTrouble as trouble:
        if (count := int(attempt.facts.get(CANCELS, "0")) + 1) < CANCELS_MAX:
            log.info("%s: %s; to be canceled again", attempt.prediction_id, trouble)
            counted = replace(attempt, facts={**attempt.facts, CANCELS: str(count)})
            return await desk.attempts.move(attempt, counted)
    except PollLie:
        pass  # it has heard of it, whatever it says
    try:
        return await _heard(desk, attempt)
    except Conflict:  # hurried along while the provider was told
        fresh = await desk.attempts.get(attempt.id)
        if fresh.state is not attempt.state:
            raise
        return await _heard(desk, fresh)


async def _heard(desk: Desk, attempt: Attempt) -> Attempt:
    after = replace(attempt, facts={**attempt.facts, HEARD: "asked"})
    return await desk.attempts.move(attempt, after)
