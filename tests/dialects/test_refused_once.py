"""A refused URL is told of once: the name of its field stands before the reason one time."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.dialects.served import client_of, house_on

PRIVATE = "http://10.0.0.1/photo.png"
REASON = "10.0.0.1 is not a public address and is not fetched"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with house_on(tmp_path) as house, client_of(house) as client:
        yield client


async def test_replicates_detail_says_the_field_once(client: httpx.AsyncClient) -> None:
    path = "/v1/models/black-forest-labs/flux-kontext-dev/predictions"
    body = {"input": {"prompt": "x", "input_image": PRIVATE}}
    answer = (await client.post(path, json=body)).json()
    assert answer["detail"].startswith(f"- input.input_image: {REASON}")
    (invalid,) = answer["invalid_fields"]
    assert invalid["field"] == "input.input_image"
    assert invalid["description"].startswith(REASON)


async def test_fals_message_leaves_the_field_to_its_place(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "image_url": PRIVATE}
    answer = await client.post("/fal/queue/fal-ai/flux-kontext/dev", json=body)
    (detail,) = answer.json()["detail"]
    assert detail["loc"] == ["body", "image_url"]
    assert detail["msg"].startswith(REASON)


async def test_bfls_message_leaves_the_field_to_its_place(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "input_image": PRIVATE}
    answer = await client.post("/v1/flux-kontext-pro", json=body)
    (detail,) = answer.json()["detail"]
    assert (detail["loc"], detail["msg"][: len(REASON)]) == (["body", "input_image"], REASON)
