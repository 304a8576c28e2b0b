"""One try to deliver one message: render, sign, POST, look at the status."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import urlsplit

from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import FluxserveError
from fluxserve.core.prediction import Prediction
from fluxserve.webhooks.signing import Message, Signer

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0

Render = Callable[[Prediction, Delivery], Message]


class Poster(Protocol):
    """A client that refuses private addresses and follows no redirect."""

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float
    ) -> int:
        """The status of the answer; a FluxserveError when none came."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a try."""

    status: int = 0  # HTTP; 0: no answer
    error: str = ""  # why it does not count as delivered

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300


class Courier:
    """Carries messages out; keeps nothing."""

    def __init__(
        self,
        *,
        poster: Poster,
        render: Render,
        signer: Signer,
        clock: Callable[[], datetime],
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._poster = poster
        self._render = render
        self._signer = signer
        self._clock = clock
        self._timeout_s = timeout_s

    async def send(self, prediction: Prediction, delivery: Delivery) -> Answer:
        """The prediction as it is now, to the receiver. Raises nothing but CancelledError."""
        try:
            message = self._render(prediction, delivery)
            signed = await self._signer.headers(message, prediction, delivery, self._clock())
        except Exception:
            log.exception("webhook %s of %s cannot be written", delivery.id, prediction.id)
            return Answer(error="the message cannot be written")
        headers = {"content-type": "application/json", **message.headers, **signed}
        try:
            status = await self._poster.post(
                delivery.url, message.body, headers, timeout_s=self._timeout_s
            )
        except FluxserveError as error:
            return Answer(error=error.message)
        if 200 <= status < 300:
            return Answer(status=status)
        return Answer(status=status, error=f"{host_of(delivery)} answered {status}")


def host_of(delivery: Delivery) -> str:
    """The receiver's host and port; nothing else of the URL belongs in a log."""
    return urlsplit(delivery.url).netloc.rpartition("@")[2].lower()
