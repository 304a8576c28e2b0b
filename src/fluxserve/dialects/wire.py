"""One request as it is asked and one answer as it is told: Starlette's, without the waste.

Every request passes here several times, so header names are decoded once, links are looked up
once, and JSON is read and written by msgspec (`bench/http.py` shows what that saves).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import cast

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fluxserve.core.prediction import Prediction
from fluxserve.core.request import JSON
from fluxserve.dialects.links import Links

JSON_TYPE = b"application/json"
QUERY_LENGTH = 200  # bytes; longer ones are nobody's polls
SHOWN_MAX = 512  # answers of one dialect and mount, some 1 kB each


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


dump = msgspec.json.Encoder(enc_hook=_plain).encode  # UTF-8, no spaces


class AskedHeaders(Headers):
    """The headers of a request, in a table. Of several of one name the first counts."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._list = raw
        # Names come in lower case. The last word in a table wins, so the first header goes last.
        self._table = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(raw)
        }

    def __getitem__(self, key: str) -> str:
        return self._table[key.lower()]

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        value = self._table.get(key)
        return self._table.get(key.lower(), default) if value is None else value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._table


class Asked(Request):
    """A request whose headers are read in one pass, and then lie at hand."""

    headers: Headers = cast(Headers, None)  # not Starlette's property: each request has its own

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self.headers = AskedHeaders(scope["headers"])

    @property
    def query_params(self) -> QueryParams:
        said: bytes = self.scope["query_string"]
        return _query(said) if len(said) <= QUERY_LENGTH else QueryParams(said)


@lru_cache(maxsize=1024)  # polls that carry the id there come again and again
def _query(said: bytes) -> QueryParams:
    return QueryParams(said)


class Answer(Response):
    """JSON in UTF-8, written without a detour."""

    def __init__(
        self, content: JSON, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.tell(dump(content), status_code, _raw(headers) if headers else [])

    def tell(self, body: bytes, status_code: int, raw: list[tuple[bytes, bytes]]) -> None:
        """Say `body` with the headers `raw`, to which its type and length are added."""
        self.status_code = status_code
        self.background = None
        self.body = body
        raw.append((b"content-length", b"%d" % len(body)))
        if not any(name == b"content-type" for name, _ in raw):
            raw.append((b"content-type", JSON_TYPE))
        self.raw_headers = raw


def told(body: bytes, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """The answer whose JSON is written already."""
    answer = Answer.__new__(Answer)
    answer.tell(body, status_code, _raw(headers) if headers else [])
    return answer


class Shown:
    """What was last said about predictions that clients look at again and again.

    A store gives the same object for a row that has not changed; then what was written for it, on
    the same links, still holds. Nothing is kept that depends on anything else.
    """

    def __init__(self, size_max: int = SHOWN_MAX) -> None:
        self._size_max = size_max
        self._kept: dict[str, tuple[Prediction, Links, bytes]] = {}

    def get(self, prediction: Prediction, links: Links) -> bytes | None:
        kept = self._kept.get(prediction.id)
        if kept is not None and kept[0] is prediction and kept[1] is links:
            return kept[2]
        return None

    def keep(self, prediction: Prediction, links: Links, body: bytes) -> bytes:
        if len(self._kept) >= self._size_max and prediction.id not in self._kept:
            del self._kept[next(iter(self._kept))]
        self._kept[prediction.id] = (prediction, links, body)
        return body


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(_name(name), value.encode("latin-1")) for name, value in headers.items()]


@lru_cache(maxsize=256)  # names are ours, and few
def _name(name: str) -> bytes:
    return name.lower().encode("latin-1")
