"""Passes on what a provider tells of a job that is not done yet."""

import contextlib
from dataclasses import replace

from fluxserve.core.attempts import Attempt
from fluxserve.core.errors import Conflict
from fluxserve.core.events import EventKind
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import JSON
from fluxserve.engines.upstream.answers import Working
from fluxserve.engines.upstream.base import OWNER, Channel, Desk


async def show(
    desk: Desk, attempt: Attempt, prediction: Prediction, channel: Channel, state: Working
) -> None:
    """Pass on what is new of progress and log."""
    progress = state.progress if state.progress is not None else prediction.progress
    if attempt.parts > 1:
        progress = prediction.progress  # one bar for several jobs would jump about
    logs = state.logs or prediction.logs
    if (progress, logs) == (prediction.progress, prediction.logs):
        return
    now = replace(prediction, progress=progress, logs=logs)
    until = desk.clock() + desk.seconds(channel.spec.deadline_s)
    with contextlib.suppress(Conflict):
        await desk.store.renew(now, owner=OWNER, lease_until=until)
    if progress != prediction.progress:
        data: dict[str, JSON] = {"step": round(progress * 100), "total": 100, "eta_s": None}
        desk.tell(prediction, EventKind.PROGRESS, data | {"queue_position": 0})
    if logs.startswith(prediction.logs):
        for line in logs[len(prediction.logs) :].splitlines():
            desk.tell(prediction, EventKind.LOG, {"text": line})
