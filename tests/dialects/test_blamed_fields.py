"""The field that is blamed is one that the caller sent, in the caller's own spelling."""

import base64
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


SMALL = base64.b64encode(png(200, 300)).decode()


@pytest.mark.parametrize("name", ["image", "input_image"])
@pytest.mark.parametrize("picture", ["!!!", SMALL, "http://10.0.0.1/a.png"])
async def test_bfl_blames_the_picture_by_the_name_it_came_in(
    client: httpx.AsyncClient, name: str, picture: str
) -> None:
    answer = await client.post("/v1/flux-pro-1.0-fill", json={name: picture})
    assert answer.status_code == 422
    assert [detail["loc"] for detail in answer.json()["detail"]] == [["body", name]]


async def test_bfl_blames_a_missing_picture_by_its_own_name(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/flux-pro-1.0-fill", json={"prompt": "x"})
    assert [detail["loc"] for detail in answer.json()["detail"]] == [["body", "image"]]


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


@pytest.mark.parametrize(
    ("said", "param", "code"),
    [
        ({"width": "abc"}, "width", "invalid_type"),
        ({"width": 10}, "width", "integer_below_min_value"),
        ({"height": 10}, "height", "integer_below_min_value"),
        ({"height": 10, "size": "1024x1024"}, "height", "integer_below_min_value"),
        ({"size": "10x512"}, "size", "integer_below_min_value"),
        ({"size": "1:9"}, "size", "invalid_value"),
        ({"size": "1:9", "aspect_ratio": "1:1"}, "size", "invalid_value"),
        ({"size": "auto", "aspect_ratio": "1:9"}, "aspect_ratio", "invalid_value"),
        ({"num_inference_steps": 1000}, "num_inference_steps", "integer_above_max_value"),
        ({"steps": 1000}, "steps", "integer_above_max_value"),
        ({"guidance_scale": 1e6}, "guidance_scale", "integer_above_max_value"),
        ({"guidance": 1e6}, "guidance", "integer_above_max_value"),
        ({"strength": 2}, "strength", "integer_above_max_value"),
        ({"n": 11}, "n", "integer_above_max_value"),
        ({"output_compression": 101}, "output_compression", "integer_above_max_value"),
    ],
)
async def test_openai_blames_the_field_that_said_the_number(
    client: httpx.AsyncClient, said: dict[str, Any], param: str, code: str
) -> None:
    body = {"prompt": "x", "model": "simulator", **said}
    answer = await client.post("/openai/v1/images/generations", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].startswith(f"Invalid value for '{param}': ")


@pytest.mark.parametrize("name", ["image", "images"])
async def test_openai_blames_too_many_pictures_by_their_name(
    client: httpx.AsyncClient, name: str
) -> None:
    picture = (await client.post("/fluxserve/v1/files", content=png())).json()["url"]
    body = {"prompt": "x", "model": "simulator", name: [picture] * 12}
    answer = await client.post(EDIT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
