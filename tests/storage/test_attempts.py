"""Attempts on either database: one job for one submission, and no words of what is forgotten."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fluxserve.core.attempts import SENT, Attempt, AttemptState
from fluxserve.core.errors import Conflict
from fluxserve.core.ids import new_id
from fluxserve.storage.attempts import AttemptRows, forget_words
from fluxserve.storage.database import Database
from fluxserve.storage.predictions import SqlPredictionStore
from tests.contracts.material import event, prediction

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
A = AttemptState


async def intended(database: Database, parts: int = 1) -> Sequence[Attempt]:
    """A prediction that runs, with an intent for each of its parts."""
    store, rows = SqlPredictionStore(database), AttemptRows(database)
    asked = prediction()
    await store.add(asked, event(asked))
    claimed = await store.claim(asked.engine, owner="w", at=NOW, lease_until=LATER)
    assert claimed is not None
    made = [
        Attempt(
            id=new_id(),
            prediction_id=claimed[0].id,
            fence=claimed[0].attempt,
            channel="channel",
            model="theirs",
            part=part,
            parts=parts,
            created_at=NOW,
            next_at=NOW,
            facts={SENT: '{"prompt": "a secret"}', "model": "theirs"},
        )
        for part in range(parts)
    ]
    for attempt in made:
        await rows.intend(attempt, LATER)
    return made


async def test_two_lost_submissions_never_take_the_same_job(database: Database) -> None:
    rows = AttemptRows(database)
    for _ in range(10):
        lost = [(await intended(database))[0] for _ in range(2)]
        found = [replace(one, state=A.ACCEPTED, upstream_id=lost[0].id) for one in lost]
        moves = (rows.move(*pair) for pair in zip(lost, found, strict=True))
        ends = await asyncio.gather(*moves, return_exceptions=True)
        assert sorted(map(type, ends), key=str) == [Attempt, Conflict]


@pytest.mark.parametrize(
    ("state", "next_at", "is_kept"),
    [
        (A.VOID, None, False),
        (A.DONE, None, False),
        (A.UNKNOWN, None, False),  # given up
        (A.UNKNOWN, NOW, True),  # looked up again
        (A.INTENT, NOW, True),
    ],
)
async def test_what_was_sent_is_forgotten_once_nobody_looks_it_up(
    database: Database, state: AttemptState, next_at: datetime | None, is_kept: bool
) -> None:
    rows = AttemptRows(database)
    first, second = await intended(database, parts=2)
    for attempt in (first, second):
        await rows.move(attempt, replace(attempt, state=state, next_at=next_at, polls=3))
    other = (await intended(database))[0]
    await rows.move(other, replace(other, state=A.VOID, next_at=None))
    await database.run(forget_words(first.prediction_id))
    expected: Mapping[str, str] = first.facts if is_kept else {"model": "theirs"}
    for attempt in await rows.of(first.prediction_id):
        assert attempt.facts == expected
        assert (attempt.state, attempt.polls, attempt.parts) == (state, 3, 2)
    assert SENT in (await rows.get(other.id)).facts
