"""The event stream of a prediction: what comes out, and how it ended. No key: the token is one.

: hi                     first, then `logs` (only with ?logs=true), `output` per file, `done`
id <ms>:<n>              the same at every replay, so Last-Event-ID takes up where it was
"""

from collections.abc import AsyncIterator, Sequence

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.errors import NotFound
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON
from fluxserve.dialects.base import Services
from fluxserve.dialects.replicate.api import Compact
from fluxserve.dialects.replicate.predictions import data_uris
from fluxserve.dialects.replicate.render import failure_of, links_of
from fluxserve.dialects.replicate.tokens import read_token
from fluxserve.dialects.replicate.words import failure_text
from fluxserve.dialects.sse import stream

ON = ("1", "true", "yes", "on")


async def open_stream(services: Services, request: Request, token: str) -> Response:
    """The stream of a token; NotFound when the token is none of ours."""
    prediction_id = read_token(services.signer, token)
    if prediction_id is None:
        raise NotFound("there is no such stream")
    prediction = await services.predictions.get(prediction_id)
    with_logs = request.query_params.get("logs", "").lower() in ON
    seen = request.headers.get("last-event-id", "").strip()
    links = services.links(request, "/v1")
    inline = services.http.delivery == "data"

    async def files(ended: Prediction) -> Sequence[str]:
        return await data_uris(services, ended) if inline else links_of(ended, links)

    async def events() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(comment="hi", sep="\n")
        logs = _Logs(prediction, seen) if with_logs else None
        now = prediction
        try:
            async for _ in services.predictions.follow(prediction.id):
                now = await services.predictions.get(prediction.id)
                if logs and (event := logs.news(now)):
                    yield event
                if now.is_terminal:
                    break
            else:
                now = await services.predictions.get(prediction.id)
        except NotFound:  # deleted while it was watched
            return
        if not now.is_terminal:  # the server is going down: the client comes back
            return
        if logs and (event := logs.news(now)):
            yield event
        shown = await files(now) if now.outputs and not now.data_removed else ()
        for event in endings(now, shown, seen):
            yield event

    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    return stream(events())


def endings(prediction: Prediction, shown: Sequence[str], seen: str) -> list[ServerSentEvent]:
    """The closing events of a finished prediction, less those up to the id that was `seen`."""
    assert prediction.finished_at is not None
    base = int(prediction.finished_at.timestamp() * 1000)
    found: list[tuple[str, str]] = [("output", link) for link in shown]
    if failure := failure_of(prediction):
        text = failure_text(failure)
        found = [("error", _json({"detail": text})), ("done", _json({"reason": "error"}))]
    elif prediction.status is PredictionStatus.SUCCEEDED:
        found.append(("done", "{}"))
    else:
        found = [("done", _json({"reason": "canceled"}))]
    ids = [f"{base}:{position}" for position in range(len(found))]
    first = ids.index(seen) + 1 if seen in ids else 0
    return [
        ServerSentEvent(event=name, data=data, id=id_, sep="\n")
        for id_, (name, data) in list(zip(ids, found, strict=True))[first:]
    ]


class _Logs:
    """The log as it grows; an event's id tells how much of it was sent."""

    def __init__(self, prediction: Prediction, seen: str) -> None:
        self._base = f"{int(prediction.created_at.timestamp() * 1000)}:"
        self._sent = 0
        if seen.startswith(self._base) and seen[len(self._base) :].isascii():
            digits = seen[len(self._base) :]
            self._sent = int(digits) if digits.isdigit() and len(digits) < 9 else 0

    def news(self, prediction: Prediction) -> ServerSentEvent | None:
        """What has been added, whole lines only, or None."""
        fresh = prediction.logs[self._sent :]
        end = len(fresh) if prediction.is_terminal else fresh.rfind("\n") + 1
        if not fresh[:end].strip("\n"):
            return None
        self._sent += end
        return ServerSentEvent(
            event="logs", data=fresh[:end].rstrip("\n"), id=f"{self._base}{self._sent}", sep="\n"
        )


def _json(value: JSON) -> str:
    return bytes(Compact(value).body).decode()
