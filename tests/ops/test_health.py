"""`/readyz` tells whether work can be taken, and why not."""

import httpx
from sqlalchemy import text

from fluxserve.app import House
from fluxserve.storage.database import Statement, Transition
from fluxserve.storage.proof import WriteProof


async def test_a_store_that_takes_no_more_writes_is_not_ready(
    house: House, http: httpx.AsyncClient
) -> None:
    for _ in range(2):
        assert (await http.get("/readyz")).status_code == 200
    await house.database.run(_set("ON"))
    assert (await http.get("/readyz")).status_code == 200, "proved within the last second"
    house.write_proof = WriteProof(house.database)
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert "the store cannot be written" in answer.json()["reasons"][0]
    assert (await http.get("/healthz")).status_code == 200


def _set(value: str) -> Transition[None]:
    """Refuse writes from now on, as on a disk that is full or gone."""
    yield Statement(text(f"PRAGMA query_only = {value}"))({})
