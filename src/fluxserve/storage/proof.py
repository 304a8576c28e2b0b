"""Proves that a database takes writes: one small row, written anew each time."""

from sqlalchemy import bindparam, update

from fluxserve.storage import tables
from fluxserve.storage.database import Statement, Transition
from fluxserve.storage.transitions import insert_or_ignore

NAME = "last asked whether it can be written"

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
