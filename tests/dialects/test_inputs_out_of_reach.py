"""An input URL that fails when the job runs: every dialect says which field it came in."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.app import House
from tests.dialects.served import client_of, house_on, png

GONE = "http://127.0.0.1:1/photo.png"  # allowed, and nobody listens there
ALLOWED = {"fetch": {"allow": ["127.0.0.1/32"]}}
NATIVE = "/fluxserve/v1/predictions"
REPLICATE = "/v1/models/black-forest-labs/flux-kontext-dev/predictions"
OPENAI = "/openai/v1/images/edits"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_on(tmp_path, ALLOWED) as house:
        yield house


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(house) as client:
        yield client


async def ended(house: House, client: httpx.AsyncClient, id_: str, url: str) -> Any:
    """What is answered at `url` when the prediction has ended."""
    await house.predictions.wait(id_.replace("-", ""), 20)
    return (await client.get(url)).json()


async def test_the_native_failure_names_the_picture_of_the_list(client: httpx.AsyncClient) -> None:
    body = {"model": "flux-kontext-dev", "prompt": "x", "images": [GONE]}
    made = (await client.post(NATIVE, json=body)).json()
    done = (await client.get(f"{NATIVE}/{made['id']}?wait=20")).json()
    assert done["error"]["field"] == "images.0"
    assert done["error"]["message"] == "images.0: 127.0.0.1 cannot be reached"


async def test_the_native_failure_names_the_mask(client: httpx.AsyncClient) -> None:
    picture = (await client.post("/fluxserve/v1/files", content=png())).json()["url"]
    body = {"model": "simulator", "prompt": "x", "images": [picture], "mask": GONE}
    made = (await client.post(NATIVE, json=body)).json()
    done = (await client.get(f"{NATIVE}/{made['id']}?wait=20")).json()
    assert done["error"]["field"] == "mask"


async def test_replicates_error_text_names_the_field(client: httpx.AsyncClient) -> None:
    body = {"input": {"prompt": "x", "input_image": GONE}}
    done = (await client.post(REPLICATE, json=body, headers={"Prefer": "wait=20"})).json()
    assert done["status"] == "failed"
    assert done["error"] == "input.input_image: 127.0.0.1 cannot be reached"


async def test_bfls_details_name_the_field(house: House, client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "input_image": GONE}
    made = (await client.post("/v1/flux-kontext-pro", json=body)).json()
    done = await ended(house, client, made["id"], made["polling_url"])
    assert done["status"] == "Error"
    assert done["details"]["message"] == "input_image: 127.0.0.1 cannot be reached"


async def test_wavespeeds_error_names_the_field(house: House, client: httpx.AsyncClient) -> None:
    path = "/api/v3/wavespeed-ai/flux-kontext-dev"
    made = (await client.post(path, json={"prompt": "x", "image": GONE})).json()["data"]
    done = (await ended(house, client, made["id"], made["urls"]["get"]))["data"]
    assert done["status"] == "failed"
    assert done["error"] == "image: 127.0.0.1 cannot be reached"


@pytest.mark.parametrize(
    ("app", "field", "value", "loc"),
    [
        ("fal-ai/flux-kontext/dev", "image_url", GONE, ["body", "image_url"]),
        ("fal-ai/flux-pro/kontext/multi", "image_urls", [GONE], ["body", "image_urls", 0]),
    ],
)
async def test_fals_detail_is_located_at_the_field(
    client: httpx.AsyncClient, app: str, field: str, value: Any, loc: list[Any]
) -> None:
    answer = await client.post(f"/fal/run/{app}", json={"prompt": "x", field: value})
    assert answer.status_code == 422
    (detail,) = answer.json()["detail"]
    assert detail == {
        "loc": loc,
        "msg": "127.0.0.1 cannot be reached",
        "type": "file_download_error",
    }


async def test_openais_param_is_the_picture(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "model": "simulator", "images": [{"image_url": GONE}]}
    answer = await client.post(OPENAI, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("images.0", "invalid_image_url")
    assert "127.0.0.1 cannot be reached" in error["message"]


@pytest.mark.parametrize("url", [GONE, "http://10.0.0.1/mask.png", "http://x:y@a.example/m.png"])
async def test_openais_param_is_the_mask_wherever_its_url_fails(
    client: httpx.AsyncClient, url: str
) -> None:
    picture = (await client.post("/fluxserve/v1/files", content=png())).json()["url"]
    body: dict[str, Any] = {"prompt": "x", "model": "simulator", "mask": {"image_url": url}}
    answer = await client.post(OPENAI, json={**body, "images": [{"image_url": picture}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "mask", json.dumps(answer.json())
