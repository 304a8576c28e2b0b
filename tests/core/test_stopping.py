"""Parts are stopped in their order, whatever one of them raises."""

import logging

import pytest

from fluxserve.core.errors import Unavailable
from fluxserve.core.stopping import stop_each


class Part:
    def __init__(self, stopped: list[str], name: str, trouble: Exception | None = None) -> None:
        self._stopped, self._name, self._trouble = stopped, name, trouble

    async def stop(self) -> None:
        self._stopped.append(self._name)
        if self._trouble:
            raise self._trouble


async def test_a_part_in_trouble_holds_up_none(caplog: pytest.LogCaptureFixture) -> None:
    stopped: list[str] = []
    away = Unavailable("the database does not answer")
    with caplog.at_level(logging.ERROR):
        await stop_each([Part(stopped, "a"), Part(stopped, "b", away), Part(stopped, "c")])
    assert stopped == ["a", "b", "c"]
    assert [record.getMessage() for record in caplog.records] == ["Part did not stop cleanly"]
