"""Servers on one database know what the others serve, and when that ends."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import pytest

from fluxserve.core.errors import Unavailable
from fluxserve.core.neighbours import Neighbours, Seen

NOW = datetime(2026, 11, 22, tzinfo=UTC)


class Others:
    """What the database would tell."""

    def __init__(self, *served: str) -> None:
        self.served = frozenset(served)
        self.skew = timedelta()
        self.is_away = False
        self.beats = 0

    async def beat(
        self, own_id: str, serves: frozenset[str], at: datetime, silent: timedelta
    ) -> Seen:
        self.beats += 1
        if self.is_away:
            raise Unavailable("away")
        return Seen(now=at + self.skew, served=self.served)


class Lost:
    def __init__(self, failures: int = 0) -> None:
        self.count = 0
        self._failures = failures

    async def __call__(self) -> None:
        self.count += 1
        if self.count <= self._failures:
            raise Unavailable("away")


def at(others: Others | None, *serves: str) -> Neighbours:
    return Neighbours(others, "a" * 32, frozenset(serves), lambda: NOW, beat_s=0.01)


async def beats(others: Others, count: int = 2) -> None:
    wanted = others.beats + count
    while others.beats < wanted:
        await asyncio.sleep(0.005)


async def test_what_another_serves_is_known_from_the_start() -> None:
    here = at(Others("local"), "bfl")
    await here.start(Lost())
    assert here.serve("local")
    assert not here.serve("bfl")
    await here.stop()


async def test_what_is_served_nowhere_any_more_is_told_once() -> None:
    others, lost = Others("local", "bfl"), Lost()
    here = at(others, "bfl")
    await here.start(lost)
    others.served = frozenset({"local"})  # bfl is served here as well
    await beats(others)
    assert lost.count == 0
    others.served = frozenset()
    await beats(others, 3)
    await here.stop()
    assert lost.count == 1
    assert not here.serve("local")


async def test_a_database_that_is_away_changes_nothing() -> None:
    others, lost = Others("local"), Lost()
    here = at(others)
    await here.start(lost)
    others.is_away = True
    await beats(others)
    assert here.serve("local")
    others.is_away, others.served = False, frozenset()
    await beats(others)
    await here.stop()
    assert lost.count == 1


async def test_what_could_not_be_rehomed_is_tried_again() -> None:
    others, lost = Others("local"), Lost(failures=2)
    here = at(others)
    await here.start(lost)
    others.served = frozenset()
    await beats(others, 6)
    await here.stop()
    assert lost.count == 3


async def test_a_server_alone_has_none() -> None:
    here = at(None, "local")
    await here.start(Lost())
    assert not here.serve("local")
    await here.stop()


@pytest.mark.parametrize(("skew_s", "words"), [(-40, "40 s ahead of"), (9, "9 s behind")])
async def test_a_clock_that_is_wrong_is_told_once(
    caplog: pytest.LogCaptureFixture, skew_s: float, words: str
) -> None:
    others = Others()
    others.skew = timedelta(seconds=skew_s)
    here = at(others)
    with caplog.at_level(logging.WARNING):
        await here.start(Lost())
        await beats(others)
    await here.stop()
    assert [words in record.getMessage() for record in caplog.records] == [True]
