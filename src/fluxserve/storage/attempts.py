"""Attempts at providers: every move one guarded transaction, so that no submission is doubled.

intend (prediction still ours?) ─> move* (state still what we saw?) ─> finished
claim_due hands out what is to be polled or looked up, to one worker at a time
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, bindparam, func, insert, literal_column, select, text, update

from fluxserve.core.attempts import NEXT, SENT, Attempt, AttemptState
from fluxserve.core.deliveries import Delivery
from fluxserve.core.errors import Conflict, NotFound
from fluxserve.core.events import Event
from fluxserve.core.prediction import Prediction
from fluxserve.storage import codec, tables, transitions
from fluxserve.storage.accept import ONE_BY_ONE
from fluxserve.storage.attempt_records import (
    ATTEMPT_COLUMNS,
    decode_attempt,
    encode_attempt,
    encode_detail,
)
from fluxserve.storage.database import Database, Param, Statement, Transition

A = tables.attempt.c
P = tables.prediction.c

UNFINISHED = text("finished_at IS NULL")
IS_DUE = text("next_poll_at IS NOT NULL")

HOLD = Statement(
    update(tables.prediction)
    .where(
        P.id == bindparam("of_prediction"),
        text("status = 'running'"),
        P.attempt == bindparam("fence_now"),
    )
    .values(lease_until=bindparam("until"))
    .returning(P.id)
)
INSERT = Statement(insert(tables.attempt))
OF = Statement(
    select(*ATTEMPT_COLUMNS)
    .where(A.prediction_id == bindparam("of_prediction"))
    .order_by(A.created_at, A.id)
)
GET = Statement(select(*ATTEMPT_COLUMNS).where(A.id == bindparam("attempt_id")))
SAME_JOB = Statement(
    select(A.id).where(
        A.channel == bindparam("on_channel"),
        A.upstream_id == bindparam("their_id"),
        A.id != bindparam("attempt_id"),
    )
)
MOVE = Statement(
    update(tables.attempt)
    .where(A.id == bindparam("attempt_id"), A.state == bindparam("old_state"))
    .where(A.fence == bindparam("old_fence"))
    .values(
        fence=bindparam("new_fence"),
        state=bindparam("new_state"),
        upstream_id=bindparam("new_upstream_id"),
        poll_url=bindparam("new_poll_url"),
        next_poll_at=bindparam("new_next_at"),
        poll_count=bindparam("new_polls"),
        finished_at=bindparam("new_finished_at"),
        cost_micro=bindparam("new_cost"),
        error=bindparam("new_error"),
        detail=bindparam("new_detail"),
    )
    .returning(A.id)
)
FORGET = Statement(
    update(tables.attempt)
    .where(A.id == bindparam("attempt_id"), A.state == bindparam("old_state"))
    .where(A.next_poll_at.is_(None))
    .values(detail=bindparam("new_detail"))
    .returning(A.id)
)
DUE = (
    select(A.id)
    .where(IS_DUE, A.next_poll_at <= bindparam("at"))
    .order_by(A.next_poll_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
CLAIM_DUE = Statement(
    update(tables.attempt)
    .where(A.id.in_(DUE))
    .values(next_poll_at=bindparam("until"))
    .returning(*ATTEMPT_COLUMNS)
)
UPCOMING = Statement(
    select(A.id, A.next_poll_at).where(IS_DUE).order_by(A.next_poll_at).limit(bindparam("most"))
)
HURRY = Statement(
    update(tables.attempt)
    .where(UNFINISHED, IS_DUE)
    .values(
        next_poll_at=bindparam("at")
        + func.abs(A.next_poll_at - bindparam("at")) % bindparam("within", type_=BigInteger)
    )
    .returning(A.id)
)
WAITING = Statement(select(func.count(A.id)).where(UNFINISHED, IS_DUE))
OPEN_COUNTS = Statement(
    select(A.channel, func.count(literal_column("1")))
    .where(UNFINISHED, IS_DUE, A.state != bindparam("ours"))
    .group_by(A.channel)
)
UNKNOWN_COUNTS = Statement(
    select(A.channel, func.count(literal_column("1")))
    .where(UNFINISHED, A.state == bindparam("of_state"))
    .group_by(A.channel)
)
BOUND = Statement(
    select(A.upstream_id).where(
        A.channel == bindparam("on_channel"), A.upstream_id == bindparam("their_id")
    )
)
NEWEST = (
    select(*ATTEMPT_COLUMNS).order_by(A.created_at.desc(), A.id.desc()).limit(bindparam("most"))
)
AT_CHANNEL = A.channel == bindparam("on_channel")
IN_STATE = A.state == bindparam("of_state")
PAGES = {  # by whether a channel and a state are named
    (False, False): Statement(NEWEST),
    (False, True): Statement(NEWEST.where(IN_STATE)),
    (True, False): Statement(NEWEST.where(AT_CHANNEL)),
    (True, True): Statement(NEWEST.where(AT_CHANNEL, IN_STATE)),
}


class AttemptRows:
    """The AttemptStore of both databases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def intend(self, attempt: Attempt, lease_until: datetime) -> None:
        await self._database.run(intend(attempt, lease_until))

    async def move(self, before: Attempt, after: Attempt) -> Attempt:
        return await self._database.run(self._moved(before, after))

    async def finish(
        self,
        attempt: tuple[Attempt, Attempt],
        prediction: tuple[Prediction, Prediction],
        events: Sequence[Event],
        deliveries: Sequence[Delivery],
    ) -> Sequence[Event]:
        return await self._database.run(self._finished(attempt, prediction, events, deliveries))

    def _moved(self, before: Attempt, after: Attempt) -> Transition[Attempt]:
        saved = yield from move(before, after)
        if after.finished_at is not None:
            yield from self._close(after.prediction_id, after.finished_at)
        return saved

    def _finished(
        self,
        attempt: tuple[Attempt, Attempt],
        prediction: tuple[Prediction, Prediction],
        events: Sequence[Event],
        deliveries: Sequence[Delivery],
    ) -> Transition[Sequence[Event]]:
        *early, last = events
        yield from move(*attempt)
        told: tuple[Event, ...] = ()
        for event in early:
            told = (*told, (yield from transitions.append(event, prediction[0].attempt)))
        told = (*told, (yield from transitions.move(*prediction, last, deliveries)))
        yield from self._close(prediction[0].id, last.at)
        return told

    def _close(self, prediction_id: str, at: datetime) -> Transition[None]:
        """What an end means for money; there is none here."""
        yield from ()

    async def get(self, attempt_id: str) -> Attempt:
        return await self._database.read(get(attempt_id))

    async def of(self, prediction_id: str) -> Sequence[Attempt]:
        return await self._database.read(of(prediction_id))

    async def claim_due(self, at: datetime, until: datetime, limit: int) -> Sequence[Attempt]:
        return await self._database.run(claim_due(at, until, limit))

    async def upcoming(self, limit: int) -> Sequence[tuple[str, datetime]]:
        rows = await self._database.fetch(UPCOMING({"most": limit}))
        return [(row[0], codec.to_time(row[1])) for row in rows]

    async def hurry(self, at: datetime, apart: timedelta) -> int:
        return await self._database.run(hurry(at, apart))

    async def open_counts(self) -> Mapping[str, int]:
        return await self._database.read(open_counts())

    async def unknown_counts(self) -> Mapping[str, int]:
        return await self._database.read(unknown_counts())

    async def bound_ids(self, channel: str, upstream_ids: Sequence[str]) -> frozenset[str]:
        return await self._database.read(bound_ids(channel, upstream_ids))

    async def page(
        self, *, channel: str | None = None, state: AttemptState | None = None, limit: int = 100
    ) -> Sequence[Attempt]:
        return await self._database.read(page(channel, state, limit))


def intend(attempt: Attempt, lease_until: datetime) -> Transition[None]:
    assert attempt.state is AttemptState.INTENT
    rows = yield HOLD(
        {
            "of_prediction": attempt.prediction_id,
            "fence_now": attempt.fence,
            "until": codec.to_micros(lease_until),
        }
    )
    if not rows:
        raise Conflict("the prediction is no longer ours to submit")
    for other in (yield from of(attempt.prediction_id)):
        if other.part == attempt.part and other.state.is_open:
            raise Conflict("a submission for this prediction is open already")
    yield INSERT(encode_attempt(attempt))


def move(before: Attempt, after: Attempt) -> Transition[Attempt]:
    assert after.state is before.state or after.state in NEXT[before.state]
    if after.upstream_id and after.upstream_id != before.upstream_id:
        # Of two that bind one job at once neither would see the other.
        yield ONE_BY_ONE({"key": f"job {after.channel} {after.upstream_id}"})
        rows = yield SAME_JOB(
            {
                "on_channel": after.channel,
                "their_id": after.upstream_id,
                "attempt_id": after.id,
            }
        )
        if rows:
            raise Conflict("another submission of ours has this job already")
    rows = yield MOVE(
        {
            "attempt_id": before.id,
            "old_state": before.state.value,
            "old_fence": before.fence,
            "new_fence": after.fence,
            "new_state": after.state.value,
            "new_upstream_id": after.upstream_id or None,
            "new_poll_url": after.poll_url or None,
            "new_next_at": codec.maybe_micros(after.next_at),
            "new_polls": after.polls,
            "new_finished_at": codec.maybe_micros(after.finished_at),
            "new_cost": after.cost_micro,
            "new_error": codec.encode_failure(after.failure),
            "new_detail": encode_detail(after),
        }
    )
    if not rows:
        yield from get(before.id)  # NotFound rather than Conflict
        raise Conflict(f"the submission is no longer {before.state}, or of another start")
    return after


def get(attempt_id: str) -> Transition[Attempt]:
    rows = yield GET({"attempt_id": attempt_id})
    if not rows:
        raise NotFound("no such submission")
    return decode_attempt(rows[0])


def of(prediction_id: str) -> Transition[Sequence[Attempt]]:
    rows = yield OF({"of_prediction": prediction_id})
    return [decode_attempt(row) for row in rows]


def claim_due(at: datetime, until: datetime, limit: int) -> Transition[Sequence[Attempt]]:
    rows = yield CLAIM_DUE(
        {"at": codec.to_micros(at), "until": codec.to_micros(until), "most": limit}
    )
    return [decode_attempt(row) for row in rows]


def hurry(at: datetime, apart: timedelta) -> Transition[int]:
    rows = yield WAITING({})
    within = max(1, round(rows[0][0] * apart.total_seconds() * 1e6))
    return len((yield HURRY({"at": codec.to_micros(at), "within": within})))


def open_counts() -> Transition[Mapping[str, int]]:
    rows = yield OPEN_COUNTS({"ours": AttemptState.FETCHED.value})
    return {row[0]: int(row[1]) for row in rows}


def unknown_counts() -> Transition[Mapping[str, int]]:
    rows = yield UNKNOWN_COUNTS({"of_state": AttemptState.UNKNOWN.value})
    return {row[0]: int(row[1]) for row in rows}


def bound_ids(channel: str, upstream_ids: Sequence[str]) -> Transition[frozenset[str]]:
    found: set[str] = set()
    for their_id in dict.fromkeys(upstream_ids):
        rows = yield BOUND({"on_channel": channel, "their_id": their_id})
        found |= {row[0] for row in rows}
    return frozenset(found)


def page(
    channel: str | None, state: AttemptState | None, limit: int
) -> Transition[Sequence[Attempt]]:
    params: dict[str, Param] = {"most": limit}
    if channel is not None:
        params["on_channel"] = channel
    if state is not None:
        params["of_state"] = state.value
    statement = PAGES[channel is not None, state is not None]
    rows = yield statement(params)
    return [decode_attempt(row) for row in rows]


def forget_words(prediction_id: str) -> Transition[None]:
    """Drop what the provider was asked for, for a prediction that has ended and is to be forgotten.

    What is still looked up needs it; there it goes with the end of the looking.
    """
    for attempt in (yield from of(prediction_id)):
        if attempt.next_at is not None or SENT not in attempt.facts:
            continue
        yield FORGET(
            {
                "attempt_id": attempt.id,
                "old_state": attempt.state.value,
                "new_detail": encode_detail(attempt.without_words()),
            }
        )
