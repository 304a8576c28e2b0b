"""Due rows that cannot be had, since somebody else has them in hand or a lock holds them."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest

from fluxserve.core.attempts import Attempt
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.script import Act, Outcome


async def test_rows_that_are_locked_are_not_asked_for_without_a_pause(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, spec = lend(ChannelKind.BFL)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    claims = 0
    is_locked = True
    claim = house.attempts.claim_due

    async def locked(at: datetime, until: datetime, limit: int) -> Sequence[Attempt]:
        nonlocal claims
        claims += 1
        return () if is_locked else await claim(at, until, limit)

    monkeypatch.setattr(house.attempts, "claim_due", locked)
    await house.open(is_alone=False)
    asked = await house.ask()
    await house.until(lambda: claims)
    before = claims
    await asyncio.sleep(1.0)
    assert 1 <= claims - before <= 20
    is_locked = False
    for work in fake.works.values():
        work.act = Act()
    await house.end(asked)
