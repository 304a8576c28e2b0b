"""An accepted prediction survives the death of its process at any moment."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from fluxserve.core.events import EventKind
from fluxserve.storage.opening import open_database
from fluxserve.storage.predictions import SqlPredictionStore

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("answers", [1, 400])
async def test_every_answered_prediction_is_there_after_a_kill(
    tmp_path: Path, answers: int
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.storage.accepting",
        url,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    told = [(await process.stdout.readline()).decode().strip() for _ in range(answers)]
    process.kill()
    told += (await process.stdout.read()).decode().split()  # answered before the kill arrived
    await process.wait()
    database = open_database(url)
    await database.start()  # the lock of the dead is gone
    store = SqlPredictionStore(database)
    for id_ in told:
        if len(id_) == 32:  # the last line may be cut short
            assert (await store.get(id_)).id == id_
            assert [one.kind for one in await store.events(id_)] == [EventKind.QUEUED]
    await database.stop()
