"""A webhook that would never be called is refused where it is named, in every dialect."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.core.ports import Query
from tests.dialects.served import client_of, house_on

DIALECTS = ("native", "replicate", "replicate legacy", "bfl", "wavespeed", "wavespeed body", "fal")
PRIVATE = [
    "http://10.0.0.1/x",
    "http://127.0.0.1:9/x",
    "http://0x7f000001/x",
    "http://[::1]/x",
    "http://169.254.169.254/latest",
]


async def ask(client: httpx.AsyncClient, dialect: str, url: str) -> tuple[httpx.Response, str]:
    """The answer to a create with a webhook, and the name of the field that named it."""
    owner = "/v1/models/black-forest-labs/flux-dev/predictions"
    paved = "/api/v3/wavespeed-ai/flux-dev"
    query: dict[str, str] = {}
    path, body, field = {
        "native": ("/fluxserve/v1/predictions", {"model": "flux-dev"}, "webhook"),
        "replicate": (owner, {}, "webhook"),
        "replicate legacy": (owner, {}, "webhook_completed"),
        "bfl": ("/v1/flux-dev", {}, "webhook_url"),
        "wavespeed": (paved, {}, "webhook"),
        "wavespeed body": (paved, {}, "webhook_url"),
        "fal": ("/fal/queue/fal-ai/flux/dev", {}, "fal_webhook"),
    }[dialect]
    said: dict[str, Any] = {**body, "prompt": "a fox"}
    if dialect.startswith("replicate"):
        said = {"input": {"prompt": "a fox"}}
    if dialect in ("wavespeed", "fal"):
        query = {field: url}
    else:
        said[field] = url
    return await client.post(path, json=said, params=query), field


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_private_receiver_is_refused_and_its_field_named(
    tmp_path: Path, dialect: str
) -> None:
    async with house_on(tmp_path) as house, client_of(house) as client:
        for url in PRIVATE:
            answer, field = await ask(client, dialect, url)
            assert answer.status_code == (400 if "wavespeed" in dialect else 422), answer.text
            assert field in answer.text
            assert "it would never be called: " in answer.text
            assert "fetch.allow" in answer.text
        assert not await house.predictions.page(Query())


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_names_and_opened_networks_are_taken(tmp_path: Path, dialect: str) -> None:
    flags = {"fetch": {"allow": ["10.0.0.0/24"]}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        for url in ("http://10.0.0.1/x", "https://hooks.example/x", "http://receiver:8080/x"):
            answer, _ = await ask(client, dialect, url)
            assert answer.status_code < 300, answer.text
        refused, _ = await ask(client, dialect, "http://10.0.1.1/x")
        assert refused.status_code in (400, 422)


async def test_replicate_names_the_receiver_in_invalid_fields(tmp_path: Path) -> None:
    async with house_on(tmp_path) as house, client_of(house) as client:
        answer, field = await ask(client, "replicate", PRIVATE[0])
        (invalid,) = answer.json()["invalid_fields"]
        assert invalid["field"] == field
