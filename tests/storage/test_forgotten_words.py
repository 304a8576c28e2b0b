"""Whoever removes a prediction, or lets it grow old, removes what its provider was asked for."""

from datetime import timedelta

import pytest

from fluxserve.core.attempts import SENT, Attempt, AttemptState
from fluxserve.core.errors import ErrorCode, Failure
from tests.storage.test_ledger import NOW, Books


async def lost_and_failed(books: Books) -> Attempt:
    """One whose submission got no answer, of a prediction that has ended."""
    await books.accept()
    running = await books.start()
    intent = await books.intended(running, facts={SENT: '{"prompt": "a secret"}', "n": "1"})
    failure = Failure(code=ErrorCode.UPSTREAM_UNKNOWN, message="nobody knows")
    await books.end(running, running.fail(failure, NOW))
    await books.closed(intent, AttemptState.UNKNOWN)
    return intent


@pytest.mark.parametrize("way", ["delete", "strip", "purge"])
async def test_the_words_of_a_submission_go_with_the_prediction(books: Books, way: str) -> None:
    lost = await lost_and_failed(books)
    assert SENT in (await books.attempts.get(lost.id)).facts
    tomorrow = NOW + timedelta(days=1)
    match way:
        case "delete":
            await books.predictions.delete(lost.prediction_id)
        case "strip":
            await books.predictions.strip(tomorrow)
        case "purge":
            await books.predictions.purge(tomorrow)
    assert (await books.attempts.get(lost.id)).facts == {"n": "1"}
