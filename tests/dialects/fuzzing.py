"""Bodies that are nearly right, for every dialect, and a server in this process to send them to."""

import asyncio
import base64
import json
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from hypothesis import strategies as st

from fluxserve.core.request import JSON
from fluxserve.core.schema import Field, Kind
from tests.dialects.served import client_of, house_on, png

T = TypeVar("T")
PICTURE = base64.b64encode(png(256, 256)).decode()
SMALL = base64.b64encode(png(16, 16)).decode()
CLEAR = base64.b64encode(png(256, 256, mode="RGBA", colour=(0, 0, 0, 0))).decode()

JUNK: st.SearchStrategy[JSON] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.sampled_from(["", " ", "0", "-1", "1e999", "true", "\ud800", "\x00", "null", "16:9"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
PICTURES = st.sampled_from(
    [
        *(PICTURE, SMALL, CLEAR, f"data:image/png;base64,{PICTURE}", "aGVsbG8=", "data:,", ""),
        *("https://example.org/a.png", "http://[::1", "http://169.254.169.254/", "ftp://x", "="),
    ]
)
SIZES = st.sampled_from(["1024*1024", "512x256", "256 X 256", "1*1", "0*0", "9999999*1", "a*b"])
RATIOS = st.sampled_from(["1:1", "16:9", "21:9", "9:21", "0:1", "1:0", "1:99999", "match_input"])


class Bench:
    """A house in which nothing ever runs, its client, and the loop they live in."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **more))


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    flags = {
        "simulator": {"outcome": "hold"},
        "limits": {"queue_max": 0},
        "wavespeed": {"sync_timeout_s": 0.001},
        "bfl": {"poll_hold_s": 0},
    }
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def enter() -> httpx.AsyncClient:
            house = await stack.enter_async_context(house_on(folder, flags))
            return await stack.enter_async_context(client_of(house))

        client = run(runner, enter())
        try:
            yield Bench(runner, client)
        finally:
            run(runner, stack.aclose())


def run(runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
    return runner.run(work)


def value_of(field: Field) -> st.SearchStrategy[JSON]:
    """Values of one field: right, at the edges, or anything."""
    right: st.SearchStrategy[JSON] = st.text(max_size=30)
    if field.choices:
        right = st.sampled_from(field.choices)
    elif field.kind in (Kind.INTEGER, Kind.NUMBER):
        low = int(field.min or 0)
        high = int(field.max if field.max is not None else 2**40)
        edges = st.sampled_from([low - 1, low, high, high + 1])
        right = st.integers(low, high) | edges | st.integers(low, high).map(str)
    elif field.kind is Kind.BOOLEAN:
        right = st.booleans()
    elif field.name == "size":
        right = SIZES
    elif field.name == "aspect_ratio":
        right = RATIOS
    elif field.name in ("loras",):
        lora = st.fixed_dictionaries({"path": JUNK, "scale": JUNK})
        right = st.lists(lora, max_size=3)
    return st.one_of(right, right, right, JUNK)


def bodies(fields: Sequence[Field], pictures: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Bodies of a form as JSON text, some of them cut off."""
    known = {field.name: value_of(field) for field in fields}
    known |= dict.fromkeys(pictures, PICTURES | JUNK)
    if "images" in known:
        known["images"] = st.lists(PICTURES | JUNK, max_size=6) | JUNK
    known |= {"webhook_url": st.sampled_from(["https://a.example/h", "x", ""]) | JUNK}
    known.pop("prompt", None)
    prompt = {"prompt": st.text(max_size=30) | st.just("a fox")}
    whole = st.fixed_dictionaries(prompt, optional={**known, "unheard_of": JUNK})
    known["prompt"] = JUNK
    some = st.fixed_dictionaries({}, optional=known)
    text = st.one_of(whole, whole, some).map(lambda body: json.dumps(body).encode())
    return st.one_of(text, text, text, text.map(lambda raw: raw[: len(raw) // 2]), st.binary())
