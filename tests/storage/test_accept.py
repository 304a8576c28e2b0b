"""The race that one process cannot have: somebody else's row, between a look and an insert."""

import pytest

from fluxserve.core.errors import Conflict
from fluxserve.core.ports import Idempotency
from fluxserve.core.prediction import Prediction
from fluxserve.storage.accept import INSERT_ONCE, SAME_NAME, QueueGauge, accept
from fluxserve.storage.database import Row
from fluxserve.storage.records import PREDICTION_COLUMNS, encode_prediction
from tests.contracts.material import event, prediction

NAME = Idempotency(key="order-1", body_hash="aa")


def row_of(one: Prediction, idempotency: Idempotency) -> Row:
    row = encode_prediction(one, idempotency, 1)
    return (*(row[column.name] for column in PREDICTION_COLUMNS), idempotency.body_hash)


def lose(theirs: Row) -> Prediction:
    """Drive an acceptance whose insert finds a row that the look before it did not."""
    mine = prediction()
    transition = accept(mine, event(mine), (), NAME, QueueGauge(), 0, 0)
    assert next(transition).statement is SAME_NAME
    assert transition.send([]).statement is INSERT_ONCE
    assert transition.send([]).statement is SAME_NAME
    with pytest.raises(StopIteration) as end:
        transition.send([theirs])
    returned = end.value.value
    assert isinstance(returned, Prediction)
    return returned


def test_the_faster_of_two_processes_wins_and_both_answer_the_same() -> None:
    theirs = prediction()
    assert lose(row_of(theirs, NAME)) == theirs


def test_the_slower_hears_of_another_body() -> None:
    with pytest.raises(Conflict):
        lose(row_of(prediction(), Idempotency(key="order-1", body_hash="bb")))


def test_the_slower_whose_rival_is_deleted_at_once_is_not_told_that_it_is_stored() -> None:
    mine = prediction()
    transition = accept(mine, event(mine), (), NAME, QueueGauge(), 0, 0)
    assert next(transition).statement is SAME_NAME
    assert transition.send([]).statement is INSERT_ONCE
    assert transition.send([]).statement is SAME_NAME
    with pytest.raises(Conflict, match="try again"):
        transition.send([])
