"""The field that is blamed is one that the caller sent, in the caller's own spelling."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dialects.served import client_of, house_on, png

EDIT = "/openai/v1/images/edits"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with house_on(tmp_path) as house, client_of(house) as client:
        yield client


@pytest.mark.parametrize(
    ("app", "field"),
    [
        ("fal-ai/flux-kontext/dev", "resolution_mode"),
        ("fal-ai/flux-pro/kontext", "aspect_ratio"),
    ],
)
async def test_fal_blames_the_field_that_said_the_ratio(
    client: httpx.AsyncClient, app: str, field: str
) -> None:
    picture = (await client.post("/fluxserve/v1/files", content=png())).json()["url"]
    body = {"prompt": "x", "image_url": picture, field: "1:99"}
    answer = await client.post(f"/fal/queue/{app}", json=body)
    assert answer.status_code == 422
    assert [detail["loc"] for detail in answer.json()["detail"]] == [["body", field]]


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"images": 5}, "images"),
        ({"images": [5]}, "images.0"),
        ({"images": []}, "images"),
        ({"images": None}, "images"),
        ({"image": 5}, "image"),
        ({"input_image": {}}, "input_image"),
        ({}, "image"),
    ],
)
async def test_openai_blames_the_pictures_by_the_name_they_came_in(
    client: httpx.AsyncClient, said: dict[str, Any], param: str
) -> None:
    answer = await client.post(EDIT, json={"prompt": "x", "model": "simulator", **said})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("name", ["image", "images"])
async def test_openai_blames_too_many_pictures_by_their_name(
    client: httpx.AsyncClient, name: str
) -> None:
    picture = (await client.post("/fluxserve/v1/files", content=png())).json()["url"]
    body = {"prompt": "x", "model": "simulator", name: [picture] * 12}
    answer = await client.post(EDIT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
