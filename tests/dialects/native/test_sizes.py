"""Sizes that no model makes are refused in the words the caller used."""

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
