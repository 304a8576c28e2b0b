"""Thousands of drawn requests: whatever is asked, the answer has this dialect's shape, never 5xx.

python -m tests.dialects.replicate.fuzz 6000
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fluxserve.asgi import create_app
from fluxserve.core.request import JSON
from fluxserve.core.schema import Field, Kind
from fluxserve.dialects.replicate.inputs import TABLES, Inputs
from tests.dialects.served import ORIGIN, house_on

# 1 x 1 px.
GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
HELD = {"simulator": {"outcome": "hold"}, "limits": {"queue_max": 0}}
PREDICTION = {"id", "model", "version", "input", "logs", "output", "data_removed", "error"}
PREDICTION |= {"status", "source", "created_at", "urls"}
MAYBE = {"started_at", "completed_at", "metrics", "deadline", "deployment", "webhook"}
MAYBE |= {"webhook_events_filter", "fluxserve"}
PROBLEM = {"detail", "status", "title", "invalid_fields", "retry_after"}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.sampled_from(["", "1:1", "16:9", "png", "https://a.example/b.png", "data:,x", GIF]),
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=8,
)


def value_of(field_: Field) -> st.SearchStrategy[Any]:
    """Mostly what the field wants, sometimes at or over its bounds, sometimes anything."""
    low = -5 if field_.min is None else field_.min
    high = 2**33 if field_.max is None else field_.max
    fitting: st.SearchStrategy[Any]
    near: st.SearchStrategy[Any]
    match field_.kind:
        case Kind.INTEGER:
            fitting = st.integers(int(low), int(high))
            near = st.sampled_from([low - 1, low, high, high + 1, float(low), 1e308])
        case Kind.NUMBER:
            fitting = st.floats(low, high)
            near = st.sampled_from([low - 0.01, low, high, high + 0.01])
        case Kind.BOOLEAN:
            fitting, near = st.booleans(), st.sampled_from([0, 1, "true"])
        case Kind.URI:
            fitting = st.sampled_from([GIF, "https://img.example/a.png"])
            near = st.sampled_from(["", "ftp://a/b", "a.png", "data:;base64,AAAA", GIF[:-9]])
        case Kind.ARRAY:
            fitting = st.lists(st.just(GIF), max_size=3)
            near = st.lists(SCALARS, max_size=6)
        case _:
            fitting = st.sampled_from(field_.choices) if field_.choices else st.text(max_size=60)
            near = st.text(max_size=10)
    odds = st.integers(0, 19)
    return odds.flatmap(lambda dice: ANYTHING if dice == 0 else near if dice < 3 else fitting)


@st.composite
def inputs(draw: st.DrawFn, table: Inputs) -> dict[str, JSON]:
    said: dict[str, JSON] = {}
    for one in table.fields:
        if draw(st.booleans()) or (one.required and draw(st.integers(0, 9))):
            said[one.name] = draw(value_of(one))
    said.update(draw(st.dictionaries(st.text(max_size=10), ANYTHING, max_size=2)))
    return said


@st.composite
def bodies(draw: st.DrawFn, table: Inputs) -> bytes:
    is_odd = draw(st.integers(0, 14)) == 7
    body: dict[str, Any] = {"input": draw(ANYTHING if is_odd else inputs(table))}
    extra = {
        "webhook": st.sampled_from(["https://a.example/x", "http://", "x"]) | ANYTHING,
        "webhook_events_filter": st.lists(st.sampled_from(["start", "logs", "end"])) | ANYTHING,
        "webhook_completed": st.just("https://a.example/x") | ANYTHING,
        "stream": st.booleans() | ANYTHING,
        "version": st.sampled_from([*TABLES, "a/b:c", "0" * 64]) | ANYTHING,
        "model": st.sampled_from([*TABLES]) | ANYTHING,
    }
    for name, values in extra.items():
        if draw(st.integers(0, 14)) == 7:
            body[name] = draw(values)
    if draw(st.integers(0, 19)) == 7:
        body[draw(st.text(max_size=9))] = draw(ANYTHING)
    raw = json.dumps(body).encode()
    broken = draw(st.integers(0, 29))
    return draw(st.binary(max_size=40)) if broken == 7 else raw[: -1 if broken == 8 else None]


FILE_NAMES = st.text("abc./\\é", max_size=8)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Prefer": st.sampled_from(["respond-async", "wait=0", "wait=x", "wait=-1", "handling"]),
        "Cancel-After": st.sampled_from(["5s", "30", "1h30m45s", "25h", "0", "soon", "9" * 9]),
        "Content-Type": st.sampled_from(["application/json", "text/plain", "x"]),
        "Idempotency-Key": st.sampled_from(["a", "b", "x" * 300]),
        "X-Forwarded-Host": st.sampled_from(["evil.example", "a b", "<x>"]),
        "x-stainless-read-timeout": st.sampled_from(["60", "x", "-1"]),
    },
)


@st.composite
def creates(draw: st.DrawFn) -> Ask:
    name = draw(st.sampled_from(sorted(TABLES)))
    by_version = draw(st.booleans())
    body = draw(bodies(TABLES[name]))
    if by_version and body.endswith(b"}"):
        body = body[:-1] + f', "version": "{name}"}}'.encode()
        return Ask("POST", "/v1/predictions", draw(HEADERS), {}, body)
    path = draw(
        st.sampled_from(
            [
                f"/v1/models/{name}/predictions",
                f"/replicate/v1/models/{name}/predictions",
                f"/v1/deployments/{name}/predictions",
                "/v1/predictions",
            ]
        )
    )
    return Ask("POST", path, draw(HEADERS), {}, body)


@st.composite
def reads(draw: st.DrawFn) -> Ask:
    word = st.sampled_from(["x", "flux-pro", "0" * 26, "a" * 32, "black-forest-labs"])
    piece = st.text("abcdef0123456789-_.~", min_size=1, max_size=30) | word
    shape = draw(
        st.sampled_from(
            [
                ("GET", "/predictions/{}"),
                ("POST", "/predictions/{}/cancel"),
                ("GET", "/predictions"),
                ("GET", "/files"),
                ("GET", "/files/{}"),
                ("DELETE", "/files/{}"),
                ("GET", "/files/{}/download"),
                ("GET", "/models/{}/{}"),
                ("GET", "/models/{}/{}/versions/{}"),
                ("GET", "/collections/{}"),
                ("GET", "/deployments/{}/{}"),
                ("GET", "/search"),
                ("GET", "/models"),
                ("QUERY", "/models"),
                ("PATCH", "/predictions"),
            ]
        )
    )
    path = "/v1" + shape[1].format(*(draw(piece) for _ in range(shape[1].count("{}"))))
    names = ["cursor", "created_after", "created_before", "source", "limit", "query", "sort_by"]
    names += ["sort_direction", "owner", "expiry", "signature"]
    times = [
        "2026-01-01",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00 02:00",
        "9999-12-31T23:59-23",
    ]
    query = draw(
        st.dictionaries(
            st.sampled_from(names), st.text(max_size=20) | st.sampled_from(times), max_size=3
        )
    )
    body = draw(st.binary(max_size=30)) if shape[0] == "QUERY" else b""
    return Ask(shape[0], path, {}, query, body)


@st.composite
def uploads(draw: st.DrawFn) -> Ask:
    names = st.sampled_from(["content", "metadata", "metadata[a]", "metadata[a][b]", "type", "x"])
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        head = f'Content-Disposition: form-data; name="{draw(names)}"'
        if draw(st.booleans()):
            head += f'; filename="{draw(FILE_NAMES)}"'
        if draw(st.booleans()):
            head += f"\r\nContent-Type: {draw(st.sampled_from(['image/png', 'x', 'a/b; c=d']))}"
        body = draw(st.binary(max_size=20) | st.just(b'{"a": 1}') | st.just(b"\x89PNG\r\n\x1a\n"))
        parts.append(b"--XX\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n")
    raw = b"".join(parts) + draw(st.sampled_from([b"--XX--\r\n", b"", b"--XX"]))
    kinds = ["multipart/form-data; boundary=XX", "multipart/form-data", "application/json"]
    kind = draw(st.sampled_from([*kinds, kinds[0], kinds[0]]))
    return Ask("POST", "/v1/files", {"Content-Type": kind}, {}, raw)


ASKS = st.one_of(creates(), creates(), creates(), reads(), uploads())


def judge(ask: Ask, answer: httpx.Response) -> None:
    """AssertionError unless the answer is one that Replicate's clients understand."""
    code = answer.status_code
    assert code < 500, answer.text
    assert "ratelimit-remaining" in answer.headers or code in (404, 405), answer.headers
    if code == 204:
        assert not answer.content
        return
    if ask.path.endswith("/download") and code == 200:
        return
    body = answer.json()
    if code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert isinstance(body["detail"], str)
        assert body["status"] == code
        assert set(body) <= PROBLEM
        for one in body.get("invalid_fields", ()):
            assert set(one) == {"type", "field", "description"}
            assert all(isinstance(item, str) for item in one.values())
        return
    if ask.method == "POST" and "predictions" in ask.path:
        assert set(body) >= PREDICTION
        assert set(body) <= PREDICTION | MAYBE
        assert isinstance(body["input"], dict)
        assert isinstance(body["logs"], str)
        assert all(isinstance(link, str) for link in body["urls"].values())
        assert "evil" not in json.dumps(body["urls"])


class Fuzz:
    """A house with a client of it on a loop of its own, and a count of the answers."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._client = self._runner.run(self._open(folder))
        self.codes: Counter[int] = Counter()

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def run(self, examples: int) -> None:
        """Draw and judge so many requests."""

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(ASKS)
        def one(ask: Ask) -> None:
            answer = self._runner.run(self._ask(ask))
            self.codes[answer.status_code] += 1
            judge(ask, answer)

        one()

    async def _open(self, folder: Path) -> httpx.AsyncClient:
        house = await self._stack.enter_async_context(house_on(folder, HELD))
        far = httpx.ASGITransport(
            create_app(house), raise_app_exceptions=False, client=("203.0.113.5", 1)
        )
        client = httpx.AsyncClient(transport=far, base_url=ORIGIN, timeout=30)
        return await self._stack.enter_async_context(client)

    async def _ask(self, ask: Ask) -> httpx.Response:
        return await self._client.request(
            ask.method, ask.path, headers=ask.headers, params=ask.query, content=ask.body
        )


def main() -> None:
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 6000
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        try:
            fuzz.run(examples)
        finally:
            fuzz.close()
            sys.stdout.write(json.dumps({"cases": fuzz.codes.total(), "codes": fuzz.codes}) + "\n")


if __name__ == "__main__":
    main()
