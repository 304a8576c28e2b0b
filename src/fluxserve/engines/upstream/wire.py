"""The HTTP side of one channel: capped answers, a key for its own host only, guarded downloads.

`send` is for submissions, which are paid for: it never repeats, and says whether a failure proves
that nothing happened. `ask` is for everything free: it may be repeated by whoever calls it.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urljoin, urlsplit

import httpx
import stamina

from fluxserve.core.errors import InputUnreachable, TooLarge
from fluxserve.core.request import JSON
from fluxserve.engines.upstream.answers import (
    Doubtful,
    Letter,
    PollLie,
    PollTrouble,
    Refusal,
    Refused,
)
from fluxserve.engines.upstream.channel import ChannelSpec
from fluxserve.engines.upstream.lines import Broken, Origin, Overlong, Unconnected

JSON_MAX_BYTES = 16 * 1024 * 1024
ASK_TIMEOUT_S = 30.0
REDIRECTS_MAX = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SENTENCE_MAX = 500  # characters of a provider's own words that we pass on
BARE = {"user-agent": "fluxserve", "accept": "*/*"}  # what goes with a download: never the key


class Guard(Protocol):
    """Fetches from hosts that somebody else named, public ones only."""

    def check(self, url: str) -> None:
        """InputUnreachable for a URL that can be refused without a look-up."""
        ...

    async def get(self, url: str) -> bytes:
        """InputUnreachable or TooLarge."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer, body included."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Mapping[str, Any]:
        """The body as a JSON object; PollLie when it is anything else."""
        try:
            value = json.loads(self.body)
        except ValueError as error:
            kind = self.headers.get("content-type", "no type").partition(";")[0]
            raise PollLie(f"the provider answered {kind} instead of JSON") from error
        if not isinstance(value, dict):
            raise PollLie("the provider answered JSON that is no object")
        return value

    @property
    def retry_after_s(self) -> float | None:
        """Seconds from Retry-After, where it is a plain number."""
        try:
            return max(0.0, float(self.headers["retry-after"]))
        except (KeyError, ValueError):
            return None

    def sentence(self) -> str:
        """What the provider says is wrong, in its own words."""
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        said = _words_of(value) or f"HTTP {self.status}"
        return " ".join(said.split())[:SENTENCE_MAX]


def _words_of(value: Any) -> str:
    """The sentence in an error body of any kind we know."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, (_words_of(item) for item in value)))
    if not isinstance(value, dict):
        return ""
    if "msg" in value:
        place = value.get("loc") or []
        name = str(place[-1]) if isinstance(place, list) and place else ""
        return f"{name}: {value['msg']}" if name else str(value["msg"])
    for name in ("detail", "message", "error", "title"):
        if said := _words_of(value.get(name)):
            return said
    return ""


class Wire:
    """One channel's connections."""

    def __init__(
        self,
        spec: ChannelSpec,
        headers: Mapping[str, str],
        guard: Guard,
    ) -> None:
        """`headers` carry the key: they go to the channel's own host and nowhere else."""
        self.spec = spec
        self._headers = {**BARE, **headers}
        self._guard = guard
        self._base = urlsplit(spec.root).path
        self._origin = Origin(spec.root, spec.connect_timeout_s)

    async def close(self) -> None:
        self._origin.close()

    def is_own(self, url: str) -> bool:
        """Whether a link leads to the channel's own scheme, host and port."""
        return self._origin.has(url)

    async def send(self, letter: Letter, token: str) -> Answer:
        """POST one paid submission. Refused when it provably did not happen, else Doubtful."""
        kind, body = _body(letter.body, letter.form, letter.files)
        headers = {**self._headers, **kind, "idempotency-key": token}
        target = self._target(letter.path, letter.params)
        limit_s = self.spec.submit_timeout_s + self.spec.connect_timeout_s
        cap = self.spec.output_max_bytes * 2
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._exchange("POST", target, headers, body, cap)
        except Unconnected as error:
            text = f"{self.spec.name} cannot be reached"
            raise Refused(Refusal.UNREACHABLE, text) from error
        except (Broken, TimeoutError, PollLie) as error:
            text = f"the answer of {self.spec.name} was lost ({_what(error)})"
            raise Doubtful(text) from error
        return self._judge(answer)

    def _judge(self, answer: Answer) -> Answer:
        """The answer itself when it is a success; Refused or Doubtful otherwise."""
        status = answer.status
        if answer.is_success:
            return answer
        words = f"{self.spec.name}: {answer.sentence()}"
        if status in (307, 308):
            raise Refused(Refusal.BROKEN, f"{self.spec.name} points to another address")
        if status == 429:
            wait_s = answer.retry_after_s
            raise Refused(Refusal.RATE, words, retry_after_s=wait_s)
        if 400 <= status < 500 and status not in (408, 425):
            raise Refused(_REFUSALS.get(status, Refusal.INPUT), words)
        raise Doubtful(f"{self.spec.name} answered HTTP {status}: {answer.sentence()}")

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, JSON] | None = None,
        files: Sequence[tuple[str, tuple[str, bytes, str]]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """A free call to the channel's own host, of any status but 429 and 5xx: PollTrouble."""
        kind, content = _body(body, {}, files)
        sent = {**self._headers, **kind, **(headers or {})}
        target = self._target(path, params or {})
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S * 2):
                answer = await self._exchange(method, target, sent, content, JSON_MAX_BYTES)
        except (Unconnected, Broken, TimeoutError) as error:
            raise PollTrouble(f"{self.spec.name} did not answer ({_what(error)})") from error
        if answer.status == 429 or answer.status >= 500:
            words = f"{self.spec.name}: {answer.sentence()} (HTTP {answer.status})"
            raise PollTrouble(words, retry_after_s=answer.retry_after_s)
        return answer

    async def ask_sibling(self, url: str) -> Answer:
        """GET a poll link on a sister host of the provider: guarded, and without the key."""
        try:
            body = await self._guard.get(url)
        except (InputUnreachable, TooLarge) as error:
            raise PollTrouble(f"{self.spec.name}: {error.message}") from error
        return Answer(status=200, headers={}, body=body)

    async def picture(self, url: str) -> bytes:
        """The bytes behind a link from an answer, fetched without the key.

        Tried again after trouble; PollLie when the link cannot be followed or the body is too
        large, PollTrouble when it did not work in the end.
        """
        if not url.startswith(("http://", "https://")):
            raise PollLie("the provider gave an output link that is no web address")
        with contextlib.suppress(PollTrouble):
            return await self._picture(url)
        async for attempt in stamina.retry_context(
            on=PollTrouble, attempts=3, wait_initial=0.2, wait_max=3.0, timeout=120.0
        ):
            with attempt:
                return await self._picture(url)
        raise AssertionError("stamina returns or raises")

    async def _picture(self, url: str) -> bytes:
        for _ in range(REDIRECTS_MAX + 1):
            if not self.is_own(url):
                return await self._foreign(url)
            parts = urlsplit(url)
            target = _quoted(parts._replace(scheme="", netloc="", fragment="").geturl() or "/")
            cap = self.spec.output_max_bytes
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S * 4):
                    answer = await self._exchange("GET", target, BARE, b"", cap)
            except (Unconnected, Broken, TimeoutError) as error:
                text = f"an output could not be downloaded ({_what(error)})"
                raise PollTrouble(text) from error
            if answer.status not in REDIRECTS:
                return _whole(answer)
            url = urljoin(url, answer.headers.get("location", ""))
        raise PollLie("the provider's output link redirects without end")

    async def _foreign(self, url: str) -> bytes:
        """A file on a host that the provider named: guarded, and never with the key."""
        try:
            self._guard.check(url)
        except InputUnreachable as error:
            raise PollLie(f"the provider's output link: {error.message}") from error
        try:
            return await self._guard.get(url)
        except TooLarge as error:
            raise PollLie(f"the provider's output link: {error.message}") from error
        except InputUnreachable as error:
            raise PollTrouble(f"an output could not be downloaded: {error.message}") from error

    async def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, cap: int
    ) -> Answer:
        """One request and its whole answer; PollLie when that exceeds `cap` bytes."""
        try:
            reply = await self._origin.exchange(method, target, headers, body, cap)
        except Overlong as error:
            raise PollLie(f"the provider's answer is {error}") from error
        return Answer(status=reply.status, headers=reply.headers, body=reply.body)

    def _target(self, path: str, params: Mapping[str, str]) -> str:
        return _quoted(self._base + path) + (f"?{urlencode(params)}" if params else "")


_REFUSALS = {
    401: Refusal.KEY,
    403: Refusal.KEY,
    402: Refusal.CREDIT,
    404: Refusal.MODEL,
    405: Refusal.BROKEN,
}


def _quoted(text: str) -> str:
    """A path or query as it may stand in a request; what is quoted already stays as it is."""
    return quote(text, safe="/%:@!$&'()*+,;=?-._~[]")


def _body(
    value: Mapping[str, JSON] | None,
    form: Mapping[str, str],
    files: Sequence[tuple[str, tuple[str, bytes, str]]],
) -> tuple[Mapping[str, str], bytes]:
    """The body of a request as JSON, a form or nothing, and the header that says which."""
    if value is not None:
        return {"content-type": "application/json"}, json.dumps(value).encode()
    if not form and not files:
        return {}, b""
    request = httpx.Request("POST", "http://form", data=dict(form), files=list(files) or None)
    return {"content-type": request.headers["content-type"]}, request.read()


def _what(error: Exception) -> str:
    """Which trouble it was, for the log."""
    return str(error) or type(error).__name__


def _whole(answer: Answer) -> bytes:
    if answer.status == 429 or answer.status >= 500:
        raise PollTrouble(f"an output could not be downloaded (HTTP {answer.status})")
    if not answer.is_success:
        raise PollLie(f"the provider's output link answers HTTP {answer.status}")
    return answer.body
