"""Rows of the attempt table as values of the core, and back."""

from collections.abc import Mapping

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.storage import codec, tables
from fluxserve.storage.database import Param, Row

A = tables.attempt.c

ATTEMPT_COLUMNS = (
    A.id,
    A.prediction_id,
    A.fence,
    A.channel,
    A.upstream_model,
    A.state,
    A.upstream_id,
    A.poll_url,
    A.created_at,
    A.next_poll_at,
    A.poll_count,
    A.finished_at,
    A.cost_micro,
    A.error,
    A.detail,
)


def encode_attempt(attempt: Attempt) -> Mapping[str, Param]:
    """The row of one that is about to be sent."""
    return {
        "id": attempt.id,
        "prediction_id": attempt.prediction_id,
        "fence": attempt.fence,
        "channel": attempt.channel,
        "upstream_model": attempt.model,
        "state": attempt.state.value,
        "upstream_id": None,
        "poll_url": None,
        "created_at": codec.to_micros(attempt.created_at),
        "submitted_at": codec.to_micros(attempt.created_at),
        "next_poll_at": codec.maybe_micros(attempt.next_at),
        "poll_count": 0,
        "lease_owner": None,
        "lease_until": None,
        "finished_at": None,
        "cost_micro": attempt.cost_micro,
        "error": None,
        "detail": encode_detail(attempt),
    }


def encode_detail(attempt: Attempt) -> str:
    return codec.dump(
        {
            "part": attempt.part,
            "parts": attempt.parts,
            "trouble": attempt.trouble,
            "refused": attempt.refused,
            "facts": attempt.facts,
            "outputs": codec.encode_outputs(attempt.outputs),
        }
    )


def decode_attempt(row: Row) -> Attempt:
    """`row` holds ATTEMPT_COLUMNS."""
    (
        id_,
        prediction_id,
        fence,
        channel,
        model,
        state,
        upstream_id,
        poll_url,
        created_at,
        next_at,
        polls,
        finished_at,
        cost_micro,
        error,
        detail_text,
    ) = row
    detail = codec.load(detail_text)
    return Attempt(
        id=id_,
        prediction_id=prediction_id,
        fence=fence,
        channel=channel,
        model=model,
        part=detail["part"],
        parts=detail["parts"],
        state=AttemptState(state),
        created_at=codec.to_time(created_at),
        next_at=codec.maybe_time(next_at),
        upstream_id=upstream_id or "",
        poll_url=poll_url or "",
        polls=polls,
        trouble=detail["trouble"],
        cost_micro=cost_micro,
        outputs=codec.decode_outputs(detail["outputs"]),
        failure=codec.decode_failure(error),
        refused=detail["refused"],
        finished_at=codec.maybe_time(finished_at),
        facts=detail["facts"],
    )
