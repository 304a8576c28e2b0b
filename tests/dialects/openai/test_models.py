"""The list of models, as OpenAI's clients read it at the shared root and at the own mount."""

from urllib.parse import quote

import httpx
import pytest

from fluxserve.app import House


@pytest.mark.parametrize("mount", ["/v1", "/openai/v1"])
async def test_every_listed_model_can_be_fetched_and_called(
    client: httpx.AsyncClient, house: House, mount: str
) -> None:
    listed = (await client.get(f"{mount}/models")).json()["data"]
    assert len(listed) > 5
    for model in listed:
        # The Python client puts the id into the path as one segment, slashes quoted.
        fetched = (await client.get(f"{mount}/models/{quote(model['id'], safe='')}")).json()
        assert fetched["id"] == model["id"]
        assert fetched["object"] == "model"
        assert fetched["owned_by"] == model["owned_by"]
        assert isinstance(fetched["created"], int)
        assert house.services.catalog.find(model["id"]) is not None, model["id"]


async def test_both_mounts_list_the_models_by_the_same_ids(client: httpx.AsyncClient) -> None:
    shared = {entry["id"] for entry in (await client.get("/v1/models")).json()["data"]}
    own = {entry["id"] for entry in (await client.get("/openai/v1/models")).json()["data"]}
    assert own <= shared
    assert all(id_.startswith("black-forest-labs/") for id_ in shared - own)
