"""What every database promises to transitions."""

import asyncio
from collections.abc import Iterable

import pytest
from sqlalchemy import bindparam, insert, select

from fluxserve.core.errors import Conflict, Unavailable
from fluxserve.storage import tables
from fluxserve.storage.database import Database, Statement, Transition

META = tables.meta.c
INSERT = Statement(insert(tables.meta))
VALUE = Statement(select(META.value).where(META.name == bindparam("called")))


def write(*names: str, then: Exception | None = None) -> Transition[tuple[str, ...]]:
    for name in names:
        yield INSERT({"name": name, "value": name.upper()})
    if then:
        raise then
    return names


def read(name: str) -> Transition[str | None]:
    rows = yield VALUE({"called": name})
    return rows[0][0] if rows else None


async def stored(database: Database, names: Iterable[str]) -> list[str | None]:
    return [await database.read(read(name)) for name in names]


async def test_a_transition_returns_what_it_says(database: Database) -> None:
    assert await database.run(write("a", "b")) == ("a", "b")
    assert await database.read(read("a")) == "A"
    assert await database.scan(read("b")) == "B"


async def test_a_transition_sees_its_own_writes(database: Database) -> None:
    def both() -> Transition[str | None]:
        yield from write("a")
        return (yield from read("a"))

    assert await database.run(both()) == "A"


async def test_a_transition_that_raises_writes_nothing(database: Database) -> None:
    with pytest.raises(Conflict):
        await database.run(write("a", "b", then=Conflict("no")))
    assert await stored(database, "ab") == [None, None]


async def test_failures_in_a_group_leave_the_others_alone(database: Database) -> None:
    """All start at once, so they share commits; some fail before, some after they wrote."""
    work = []
    for n in range(30):
        match n % 3:
            case 0:
                work.append(write(f"good{n}", f"more{n}"))
            case 1:
                work.append(write(f"bad{n}", then=Conflict("after a write")))
            case _:
                work.append(write(then=Conflict("before any write")))
    results = await asyncio.gather(*(database.run(one) for one in work), return_exceptions=True)
    assert all(isinstance(result, Conflict) == bool(n % 3) for n, result in enumerate(results))
    for n in range(30):
        expected = [f"GOOD{n}", f"MORE{n}"] if n % 3 == 0 else [None, None]
        assert await stored(database, [f"good{n}", f"more{n}"]) == expected
        assert await stored(database, [f"bad{n}"]) == [None]


async def test_a_broken_constraint_fails_its_transition_whole(database: Database) -> None:
    await database.run(write("taken"))
    results = await asyncio.gather(
        database.run(write("a")),
        database.run(write("b", "taken")),
        database.run(write("c")),
        return_exceptions=True,
    )
    assert isinstance(results[1], Exception)
    assert await stored(database, "abc") == ["A", None, "C"]


async def test_a_caller_that_gives_up_does_not_stop_the_others(database: Database) -> None:
    first = asyncio.ensure_future(database.run(write("a")))
    second = asyncio.ensure_future(database.run(write("b")))
    await asyncio.sleep(0)  # both are handed over
    first.cancel()
    assert await second == ("b",)
    assert await stored(database, "b") == ["B"]


async def test_a_stopped_database_says_so(database: Database) -> None:
    await database.stop()
    with pytest.raises(Unavailable):
        await database.run(write("a"))
    with pytest.raises(Unavailable):
        await database.read(read("a"))
