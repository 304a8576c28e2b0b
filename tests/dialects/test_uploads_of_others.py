"""Uploads named by id: whoever made one may use it in every dialect, nobody else in any."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.app import House
from tests.dialects.served import client_of, house_on, png

ASKED: dict[str, tuple[str, str]] = {
    "bfl": ("/v1/flux-kontext-pro", "input_image"),
    "wavespeed": ("/api/v3/wavespeed-ai/flux-kontext-dev", "image"),
    "fal": ("/fal/queue/fal-ai/flux-kontext/dev", "image_url"),
    "openai": ("/openai/v1/images/edits", "images"),
    "openai mask": ("/openai/v1/images/edits", "mask"),
    "native": ("/fluxserve/v1/predictions", "images"),
    "native mask": ("/fluxserve/v1/predictions", "mask"),
    "replicate": ("/v1/models/black-forest-labs/flux-kontext-dev/predictions", "input_image"),
}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_on(tmp_path) as house:
        yield house


async def ask(client: httpx.AsyncClient, dialect: str, url: str) -> httpx.Response:
    path, field = ASKED[dialect]
    body: dict[str, Any] = {"prompt": "x", field: url}
    match dialect:
        case "openai":
            body = {"prompt": "x", "model": "simulator", field: [{"image_url": url}]}
        case "openai mask":
            picture = (await client.post("/fluxserve/v1/files", content=png())).json()["url"]
            images = [{"image_url": picture}]
            mask = {"image_url": url}
            body = {"prompt": "x", "model": "simulator", "images": images, "mask": mask}
        case "native":
            body = {"model": "flux-kontext-dev", "prompt": "x", field: [url]}
        case "native mask":
            picture = (await client.post("/fluxserve/v1/files", content=png())).json()["url"]
            body = {
                "model": "black-forest-labs/flux-fill-pro",
                "prompt": "x",
                "images": [picture],
                field: url,
            }
        case "replicate":
            body = {"input": body}
    return await client.post(
        path, json=body, headers={"x-key": client.headers["authorization"][7:]}
    )


@pytest.mark.parametrize("dialect", ASKED)
async def test_an_upload_is_an_input_for_its_own_key_only(house: House, dialect: str) -> None:
    _, key = await house.keyring.create()
    _, other = await house.keyring.create()
    async with client_of(house, key) as anna, client_of(house, other) as ben:
        sent = {"content": ("a.png", png(mode="L", colour=(9,)), "image/png")}
        url = (await anna.post("/v1/files", files=sent)).json()["urls"]["get"]
        refused = await ask(ben, dialect, url)
        assert 400 <= refused.status_code < 500, refused.text
        assert ASKED[dialect][1] in refused.text
        good = await ask(anna, dialect, url)
        assert good.is_success, good.text
