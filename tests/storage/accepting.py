"""A process that accepts predictions as fast as it can and prints every id that it answered."""

import asyncio
import sys

from fluxserve.storage.opening import open_database
from fluxserve.storage.predictions import SqlPredictionStore
from tests.contracts.material import event, prediction


async def accept(store: SqlPredictionStore) -> None:
    while True:
        one = prediction()
        await store.add(one, event(one))
        sys.stdout.write(one.id + "\n")
        sys.stdout.flush()


async def main() -> None:
    database = open_database(sys.argv[1])
    await database.start()
    store = SqlPredictionStore(database)
    await asyncio.gather(*(accept(store) for _ in range(8)))


asyncio.run(main())
