"""What is answered says what it is about, once, and as it was."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fluxserve.app import House
from fluxserve.core.ports import Query
from tests.dialects.served import client_of, house_on

SLOW = {"simulator": {"seconds": 60.0}}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_on(tmp_path, SLOW) as house:
        yield house


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(house) as client:
        yield client


async def test_a_wait_cut_short_by_a_stop_is_told_as_long_as_it_was(
    house: House, client: httpx.AsyncClient
) -> None:
    body = {"prompt": "a fox", "model": "simulator"}
    call = asyncio.create_task(client.post("/openai/v1/images/generations", json=body))
    while not (made := await house.predictions.page(Query())):
        await asyncio.sleep(0.01)
    house.bus.close()
    answer = await call
    assert answer.status_code == 504
    seconds = answer.json()["error"]["message"].split(" after ")[1].partition(" s;")[0]
    assert 1 <= int(seconds) < 60
    await house.predictions.cancel(made[0].id)


@pytest.mark.parametrize(
    "path", ["/v1/flux-nothing", "/bfl/v1/flux-nothing", "/proxy/bfl/flux-nothing/generate"]
)
async def test_bfl_says_that_it_is_the_model_that_is_not_there(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.post(path, json={"prompt": "a fox"})
    assert answer.status_code == 404
    body = answer.json()
    assert body["detail"] == "Not Found"
    assert body["message"] == "There is no model named 'flux-nothing'"


async def test_an_empty_prompt_is_named_once(client: httpx.AsyncClient) -> None:
    body = {"model": "black-forest-labs/flux-schnell", "prompt": " "}
    answer = await client.post("/fluxserve/v1/predictions", json=body)
    error = answer.json()["error"]
    assert (error["field"], error["message"]) == ("prompt", "prompt is required")


@pytest.mark.parametrize(
    "path", ["/fluxserve/v1/predictions", "/openai/v1/images/generations", "/api/v3/balance"]
)
async def test_a_wrong_method_is_not_called_a_path_that_is_not_there(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.patch(path)
    assert answer.status_code == 405
    assert "method_not_allowed" in answer.text
    assert "not_found" not in answer.text
