"""Looks for a submission whose answer was lost among the jobs that a provider lists.

A list proves absence only where it was read back to before the submission, and where every job
since then is shown well enough to be told apart from the lost one.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from fluxserve.core.attempts import SENT
from fluxserve.engines.upstream import reading
from fluxserve.engines.upstream.answers import Accepted, Lookup, Lost, PollLie, Taken, Ticket

PAGES_MAX = 50  # of a hundred jobs each, when looking for a lost one
CLOCK_SKEW = timedelta(minutes=2)  # between their clock and ours


def jobs_in(name: str, value: Any) -> Sequence[Any]:
    """The jobs of a page; PollLie for what is no list, which says nothing of any job."""
    if not isinstance(value, list):
        raise PollLie(f"{name} answered without a list of jobs")
    return value


class Search:
    """One look for one lost submission, page by page."""

    def __init__(self, lost: Lost) -> None:
        self._lost = lost
        self._sent: Mapping[str, Any] = json.loads(lost.facts.get(SENT, "{}"))
        self._oldest = lost.created_at - CLOCK_SKEW
        self._named = ""  # the job that carries our token
        self._fits: list[str] = []
        self._unclear: list[str] = []  # may be it or not; "" where not even the id can be read

    def read(self, jobs: Sequence[Any]) -> bool:
        """Take in one page, newest first; True when no older page can matter."""
        ages = [self._weigh(reading.mapping(job)) for job in jobs]
        if self._named:
            return True
        if not ages or ages[-1] is None or ages[-1] >= self._oldest:
            return False
        return ages[0] is not None and ages[0] >= ages[-1]  # else it is not newest first

    async def result(self, taken: Taken) -> Accepted | Lookup:
        """What all pages together say."""
        if self._named:
            return self._accepted(self._named)
        known = await taken([job_id for job_id in (*self._fits, *self._unclear) if job_id])
        free = [job_id for job_id in self._fits if job_id not in known]
        if free:
            return self._accepted(free[-1])
        is_proved = all(job_id in known for job_id in self._unclear)
        return Lookup.ABSENT if is_proved else Lookup.IMPOSSIBLE

    def _weigh(self, job: Mapping[str, Any]) -> datetime | None:
        """Note a job where it is or may be the lost one; returns when it began."""
        at = reading.moment(job.get("created_at"))
        job_id = reading.job_id(job.get("id"))
        webhook = reading.text(job.get("webhook"))
        if job_id and self._lost.token in webhook:
            self._named = job_id
            return at
        is_same = reading.matches(job.get("input"), self._sent)
        if is_same is False or (at is not None and at < self._oldest):
            return at
        # A webhook names the submission it belongs to, and that is not this one.
        is_fit = is_same and at is not None and job_id and not webhook
        (self._fits if is_fit else self._unclear).append(job_id)
        return at

    def _accepted(self, job_id: str) -> Accepted:
        lost = self._lost
        return Accepted(ticket=Ticket(upstream_id=job_id, model=lost.model, token=lost.token))
