"""Event streams over a real socket: live, with logs, taken up again, kept alive, hung up."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.server import ServerProcess

MODEL = "/v1/models/black-forest-labs/flux-schnell/predictions"


@pytest.fixture
async def live(start_server: Callable[..., ServerProcess]) -> AsyncIterator[httpx.AsyncClient]:
    server = start_server()
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        yield client


async def create(client: httpx.AsyncClient, prompt: str) -> tuple[str, str]:
    """The links of a new prediction and of its stream."""
    answer = await client.post(MODEL, json={"input": {"prompt": prompt, "num_outputs": 2}})
    urls = answer.json()["urls"]
    return urls["get"], urls["stream"]


async def read(client: httpx.AsyncClient, url: str, last_id: str = "") -> list[tuple[str, ...]]:
    """(event, id, data) of each event until the end."""
    headers = {"Accept": "text/event-stream"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    answer = await client.get(url, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.text.startswith(": hi\n\n")
    found: list[tuple[str, ...]] = []
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        data = [line[6:] for line in block.splitlines() if line.startswith("data: ")]
        if fields:
            found.append((fields["event"], fields["id"], "\n".join(data)))
    return found


async def test_a_stream_opened_early_ends_with_the_files(live: httpx.AsyncClient) -> None:
    _, url = await create(live, "a fox [[seconds=0.5]]")
    events = await read(live, url)
    assert [name for name, _, _ in events] == ["output", "output", "done"]
    assert len({id_ for _, id_, _ in events}) == 3
    assert all(re.fullmatch(r"\d{13}:\d+", id_) for _, id_, _ in events)
    assert events == await read(live, url)
    assert (await live.get(events[0][2])).headers["content-type"] == "image/webp"
    assert await read(live, url, events[0][1]) == events[1:]
    assert await read(live, url, events[2][1]) == []
    assert await read(live, url, "made up") == events


async def test_logs_come_when_asked_for_and_are_the_whole_log(live: httpx.AsyncClient) -> None:
    get, url = await create(live, "a fox [[seconds=0.5 steps=5]]")
    events = await read(live, url + "?logs=true")
    logs = [(id_, data) for name, id_, data in events if name == "logs"]
    assert len(logs) > 1
    whole = (await live.get(get)).json()["logs"]
    assert "\n".join(data for _, data in logs) == whole.rstrip("\n")
    rest = await read(live, url + "?logs=true", logs[0][0])
    told = "\n".join(data for name, _, data in rest if name == "logs")
    assert told == whole.rstrip("\n").removeprefix(logs[0][1] + "\n")
    assert [name for name, _, _ in rest][-3:] == ["output", "output", "done"]


async def test_a_cancel_ends_an_open_stream(live: httpx.AsyncClient) -> None:
    get, url = await create(live, "slow [[seconds=60]]")
    async with live.stream("GET", url) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == ": hi"
        await live.post(get + "/cancel")
        assert [line async for line in lines if line.startswith("data")] == [
            'data: {"reason":"canceled"}'
        ]


async def test_hanging_up_cancels_nothing(live: httpx.AsyncClient) -> None:
    get, url = await create(live, "a fox [[seconds=0.5]]")
    async with live.stream("GET", url) as answer:
        assert await anext(answer.aiter_lines()) == ": hi"
    assert [name for name, _, _ in await read(live, url)][-1] == "done"
    assert (await live.get(get)).json()["status"] == "succeeded"


async def test_a_wait_that_is_hung_up_leaves_the_prediction_running(
    live: httpx.AsyncClient,
) -> None:
    body = {"input": {"prompt": "a fox [[seconds=1]]"}}
    with pytest.raises(httpx.ReadTimeout):
        await live.post(MODEL, json=body, headers={"Prefer": "wait"}, timeout=0.5)
    listed = (await live.get("/v1/predictions")).json()["results"]
    assert len(listed) == 1
    events = await read(live, listed[0]["urls"]["stream"])
    assert [name for name, _, _ in events] == ["output", "done"]


async def test_a_server_that_stops_answers_its_waiters_first(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(FLUXSERVE_DISPATCH__DRAIN_S="0.2")
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        body = {"input": {"prompt": "slow [[seconds=60]]"}}
        asked = asyncio.create_task(client.post(MODEL, json=body, headers={"Prefer": "wait"}))
        while not (await client.get("/v1/predictions")).json()["results"]:
            await asyncio.sleep(0.02)
        code = await asyncio.to_thread(server.stop)
        answer = await asked
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")
    assert code == 0
