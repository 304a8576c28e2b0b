"""The native stream of events: links to pictures, and an end that browsers understand."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.asgi import create_app
from fluxserve.core.events import Event, EventKind
from tests.dialects.served import client_of, house_on, size_of

PREDICTIONS = "/fluxserve/v1/predictions"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with house_on(tmp_path) as house, client_of(house) as client:
        yield client


async def finished(client: httpx.AsyncClient) -> str:
    """The events path of a prediction that has ended."""
    body = {"model": "simulator", "prompt": "a fox", "width": 128, "height": 64}
    made = (await client.post(PREDICTIONS, json=body)).json()
    done = (await client.get(f"{PREDICTIONS}/{made['id']}?wait=20")).json()
    assert done["status"] == "succeeded"
    return f"{PREDICTIONS}/{made['id']}/events"


def told(answer: httpx.Response, kind: str) -> dict[str, Any]:
    """The first event of a kind, with its id."""
    for block in answer.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if lines.get("event") == kind:
            return {**json.loads(lines["data"]), "id": lines.get("id")}
    raise AssertionError(f"no {kind} in {answer.text}")


async def test_an_output_event_links_to_its_picture_and_tells_no_key_of_the_store(
    client: httpx.AsyncClient,
) -> None:
    event = told(await client.get(await finished(client)), "output")
    assert "key" not in event
    assert event["url"].startswith("http://flux.test/out/")
    picture = await client.get(event["url"])
    assert picture.headers["content-type"] == event["mime"]
    assert size_of(picture.content) == (128, 64)


@pytest.mark.parametrize("beyond", [False, True])
async def test_who_has_heard_everything_of_a_finished_prediction_is_told_not_to_come_back(
    client: httpx.AsyncClient, beyond: bool
) -> None:
    path = await finished(client)
    last = "999" if beyond else told(await client.get(path), "finished")["id"]
    answer = await client.get(path, headers={"Last-Event-ID": last})
    assert (answer.status_code, answer.content) == (204, b"")


async def test_who_missed_the_end_hears_the_rest(client: httpx.AsyncClient) -> None:
    path = await finished(client)
    output = told(await client.get(path), "output")["id"]
    answer = await client.get(path, headers={"Last-Event-ID": output})
    assert answer.status_code == 200
    assert "event: output" not in answer.text
    assert told(answer, "finished")["prediction"]["status"] == "succeeded"


async def test_a_last_event_id_that_is_no_number_counts_as_none(client: httpx.AsyncClient) -> None:
    path = await finished(client)
    answer = await client.get(path, headers=[(b"Last-Event-ID", b"\xb2")])
    assert answer.status_code == 200
    assert "event: started" in answer.text


async def test_a_stream_of_what_another_server_deletes_ends(tmp_path: Path) -> None:
    held = {"simulator": {"outcome": "hold"}}
    async with (
        house_on(tmp_path, held) as house,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(house)), base_url="http://flux.test"
        ) as client,
    ):
        body = {"model": "simulator", "prompt": "a fox"}
        made = (await client.post(PREDICTIONS, json=body)).json()
        stream = asyncio.create_task(client.get(f"{PREDICTIONS}/{made['id']}/events"))
        async with asyncio.timeout(10):
            while not house.bus._subscriptions:
                await asyncio.sleep(0)
            before = await house.store.get(made["id"])
            at = datetime.now(UTC)
            gone = Event(prediction_id=before.id, kind=EventKind.FINISHED, at=at)
            await house.store.move(before, before.cancel(at), gone)
            await house.store.delete(before.id)
            assert "event: queued" in (await stream).text
