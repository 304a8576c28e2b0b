"""Fair shares of the device: what every key was given, what it is owed, where its next job stands.

Virtual time runs at the speed at which every key with work would be served if the device were split
by weight. A key's own time is what it was given, divided by its weight; the difference is its lead.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Account:
    weight: float
    time: float  # what it was given, in device seconds over weight; starts at virtual time
    backlog_s: float = 0.0  # device seconds asked for and not yet given
    jobs: int = 0


class Shares:
    """Deficit counters in device seconds, one a key. Nothing is remembered once nobody waits."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._time = 0.0
        self._active_weight = 0.0

    def enter(self, key: str, weight: float) -> float:
        """A job of `key` arrives. Returns its place: behind all that the key still has waiting."""
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account(weight, self._time)
        if account.jobs:
            self._active_weight -= account.weight
        else:
            account.time = max(account.time, self._time)
        account.weight = weight
        account.jobs += 1
        self._active_weight += weight
        return max(self._time, account.time + account.backlog_s / weight)

    def ask(self, key: str, seconds: float) -> None:
        """The key waits for that much more device time; less, where negative."""
        account = self._accounts[key]
        account.backlog_s = max(0.0, account.backlog_s + seconds)

    def leave(self, key: str) -> None:
        """A job of `key` is done or gone."""
        account = self._accounts[key]
        account.jobs -= 1
        if account.jobs:
            return
        account.backlog_s = 0.0
        self._active_weight -= account.weight
        if not any(other.jobs for other in self._accounts.values()):
            self._accounts.clear()
            self._time = self._active_weight = 0.0
        elif account.time <= self._time:
            del self._accounts[key]

    def serve(self, served: Mapping[str, float]) -> None:
        """Device seconds went to these keys; each has work."""
        for key, seconds in served.items():
            account = self._accounts[key]
            account.time += seconds / account.weight
            self._time += seconds / self._active_weight
        if len(self._accounts) > 1024:  # those that left ahead of their share and were caught up
            self._accounts = {
                key: account
                for key, account in self._accounts.items()
                if account.jobs or account.time > self._time
            }

    def lead(self, key: str) -> float:
        """Device seconds, over weight, that the key is ahead of its fair share; negative: owed."""
        return self._accounts[key].time - self._time
