"""Who may use the device now: one at a time, in the order of asking, where lanes share one.

On a CPU the lanes would only slow each other down, so they take turns of one step or one picture.
On a GPU each lane has a stream of its own and nobody waits here.
"""

from __future__ import annotations

import time
from collections import deque
from threading import Condition, get_ident
from types import TracebackType


class Turns:
    """A fair lock. With `shared` it holds nobody back and only keeps the time."""

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._change = Condition()
        self._waiting: deque[int] = deque()
        self._began: dict[int, float] = {}  # thread -> when its turn began

    def __enter__(self) -> None:
        me = get_ident()
        with self._change:
            if not self._shared:
                self._waiting.append(me)
                self._change.wait_for(lambda: self._waiting[0] == me)
            self._began[me] = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._change:
            del self._began[get_ident()]
            if not self._shared:
                self._waiting.popleft()
                self._change.notify_all()

    @property
    def waiting(self) -> int:
        """How many have a turn or wait for one."""
        with self._change:
            return len(self._waiting)

    @property
    def busy_s(self) -> float:
        """For how long the oldest turn has been going on; 0.0 when nobody has one."""
        with self._change:
            oldest = min(self._began.values(), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def pardon(self, seconds: float) -> None:
        """So long nobody could run at all: turns that go on now count from that much later."""
        with self._change:
            now = time.monotonic()
            self._began = {me: min(now, at + seconds) for me, at in self._began.items()}
