"""Links of ours as inputs: an upload is for its own key only; a dead link is told as gone."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.app import House
from tests.dialects.served import ORIGIN, client_of, house_on, png

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
        path, json=body, headers={"x-key": client.headers.get("authorization", "")[7:]}
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


def is_told_gone(dialect: str, answer: httpx.Response) -> bool:
    words = "does not exist or has expired" if dialect == "replicate" else "no longer there"
    return ASKED[dialect][1] in answer.text and words in answer.text


@pytest.mark.parametrize("dialect", ASKED)
async def test_an_upload_that_was_deleted_is_told_as_gone(house: House, dialect: str) -> None:
    """No public_url is set: this server is known by the name that the caller used."""
    async with client_of(house, base="http://127.0.0.1:18123") as client:
        made = await client.post("/v1/files", files={"content": ("a.png", png(), "image/png")})
        url = made.json()["urls"]["get"]
        assert (await client.delete(url)).status_code == 204
        refused = await ask(client, dialect, url)
        assert 400 <= refused.status_code < 500, refused.text
        assert is_told_gone(dialect, refused), refused.text


@pytest.mark.parametrize("dialect", ASKED)
async def test_a_signed_link_that_has_expired_is_told_as_gone(house: House, dialect: str) -> None:
    expired = house.services.clock() - timedelta(seconds=1)
    url = f"{ORIGIN}/out/{house.services.signer.token('inputs/a.png', expired)}/a.png"
    async with client_of(house) as client:
        refused = await ask(client, dialect, url)
        assert 400 <= refused.status_code < 500, refused.text
        assert is_told_gone(dialect, refused), refused.text
