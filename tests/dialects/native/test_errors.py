"""Native errors name the field that is wrong, as the caller spelled it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dialects.served import client_of, house_on

PREDICTIONS = "/fluxserve/v1/predictions"
GOOD = {"model": "flux-dev", "prompt": "a fox"}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with house_on(tmp_path) as house, client_of(house) as client:
        yield client


async def refused(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(PREDICTIONS, json=body)
    assert answer.status_code == 422, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**GOOD, "bogus": 1}, "bogus"),
        ({"prompt": "a fox"}, "model"),
        ({**GOOD, "margins": {"lfet": 8}}, "margins.lfet"),
        ({**GOOD, "loras": [{"scale": 1.0}]}, "loras.0.path"),
        ({**GOOD, "num_steps": "many"}, "num_steps"),
    ],
)
async def test_the_bad_field_itself_is_named(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    error = await refused(client, body)
    assert error["field"] == field
    assert error["problems"][0]["field"] == field


async def test_every_problem_is_named(client: httpx.AsyncClient) -> None:
    error = await refused(client, {"prompt": "a fox", "one": 1, "two": 2})
    assert [problem["field"] for problem in error["problems"]] == ["model", "one", "two"]


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ({"width": 0, "height": 0}, ["width", "height"]),
        ({"width": 0}, ["width"]),
        ({"size": "0x0"}, ["size", "size"]),
        ({"size": "100000x100000"}, ["size", "size", "size"]),
    ],
)
async def test_no_pixels_and_too_many_are_refused_as_sizes(
    client: httpx.AsyncClient, said: dict[str, Any], fields: list[str]
) -> None:
    error = await refused(client, {**GOOD, **said})
    assert [problem["field"] for problem in error["problems"]] == fields
    assert "WIDTHxHEIGHT" not in error["message"]
    assert "ust be" in error["message"]
