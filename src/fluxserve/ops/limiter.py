"""Requests per caller and minute, counted in memory by the `limits` library."""

import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from fluxserve.core.access import Caller, RateState
from fluxserve.core.errors import RateLimited

# Without a limit of its own a dialect still has to name one: what Replicate's service allows.
SHOWN = {"create": 600, "read": 3000}
UNLIMITED = {
    kind: RateState(limit=0, remaining=shown - 1, reset_s=1) for kind, shown in SHOWN.items()
}


class MemoryLimiter:
    """Limits creates by each key's own rate, or the server's; reads are never limited."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._window = MovingWindowRateLimiter(MemoryStorage())

    async def hit(self, caller: Caller, kind: str) -> RateState:
        """Count one request; RateLimited when the caller's minute is used up."""
        limit = (caller.key.rate_per_minute if caller.key else 0) or self._per_minute
        if kind != "create" or not limit:
            return UNLIMITED.get(kind, UNLIMITED["read"])
        item = RateLimitItemPerMinute(limit)
        name = caller.key_id or "open"
        is_let_in = await self._window.hit(item, name)
        stats = await self._window.get_window_stats(item, name)
        reset_s = max(1, math.ceil(stats.reset_time - time.time()))
        if not is_let_in:
            text = f"at most {limit} requests per minute; the next is welcome in {reset_s} s"
            raise RateLimited(text, retry_after_s=reset_s)
        return RateState(limit=limit, remaining=stats.remaining, reset_s=reset_s)
