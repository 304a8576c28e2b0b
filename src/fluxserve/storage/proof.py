"""Proves that a database takes writes: one small row, written anew."""

import time

from sqlalchemy import bindparam, update

from fluxserve.storage import tables
from fluxserve.storage.database import Database, Statement, Transition
from fluxserve.storage.transitions import insert_or_ignore

NAME = "last asked whether it can be written"
HOLDS_S = 1.0  # whoever asks needs no key: asking often must not cost a commit each time

INSERT = insert_or_ignore(tables.meta, "name")
WRITE = Statement(
    update(tables.meta)
    .where(tables.meta.c.name == bindparam("called"))
    .values(value=bindparam("text"))
)


def prove_writable(now: str) -> Transition[None]:
    """`now` is any text that changes: a row that stays as it is would be no write."""
    yield INSERT({"name": NAME, "value": now})
    yield WRITE({"called": NAME, "text": now})


class WriteProof:
    """What was proved holds for a second; a failure holds for nobody."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._until = 0.0

    async def renew(self) -> None:
        """Raises what the database raises when it cannot be written."""
        if time.monotonic() >= self._until:
            await self._database.run(prove_writable(str(time.time())))
            self._until = time.monotonic() + HOLDS_S
