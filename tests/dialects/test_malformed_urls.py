"""A URL that is none is refused at creation, by its field and for what is wrong with it."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.dialects.served import client_of, house_on

BROKEN = "http://xn--/a.png"
WHY = "the URL is malformed: 'xn--' is no name of a host"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with house_on(tmp_path) as house, client_of(house) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/flux-kontext-pro", "input_image"),
        ("/v1/simulator", "input_image"),
        ("/api/v3/wavespeed-ai/flux-kontext-dev", "image"),
        ("/fal/queue/fal-ai/flux-kontext/dev", "image_url"),
        ("/openai/v1/images/edits", "image"),
    ],
)
async def test_the_field_of_a_picture_on_a_host_that_is_none_is_named(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    body = {"model": "simulator", "prompt": "x", field: BROKEN}
    answer = await client.post(path, json=body)
    assert answer.status_code in (400, 422), answer.text
    assert field in answer.text
    assert WHY in answer.text


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/flux-dev", "webhook_url"), ("/fluxserve/v1/predictions", "webhook")],
)
async def test_the_field_of_a_webhook_on_a_host_that_is_none_is_named(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    body = {"model": "simulator", "prompt": "x", field: BROKEN}
    answer = await client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert field in answer.text
    assert WHY in answer.text


async def test_a_picture_on_a_name_with_an_underscore_is_taken(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "input_image": "https://my_bucket.invalid/x.png"}
    answer = await client.post("/v1/flux-kontext-pro", json=body)
    assert answer.status_code == 200, answer.text
