"""Which deliveries may be under way at once: no receiver stands in the way of another.

A receiver that answers well may use most of the slots and has a short line of waiting messages.
One that failed last is given two slots and no line. Whatever finds no place is put off, each one
a little later than the one before, so a receiver's backlog never crowds out the rest.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from fluxserve.core.deliveries import Delivery
from fluxserve.webhooks.courier import host_of

TROUBLED_MAX = 1000  # hosts remembered as troubled; the oldest is forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """How wide the road is."""

    at_once: int = 16
    per_host: int = 12  # the rest stays free for others when one turns slow
    per_troubled_host: int = 2
    line_max: int = 32  # 32 waiting + 12 sending, 10 s each, end well within a lease of 60 s
    put_off_s: float = 0.2
    put_off_step_s: float = 0.002
    put_off_troubled_s: float = 5.0
    put_off_troubled_step_s: float = 0.05


@dataclass(slots=True)
class _Host:
    waiting: deque[Delivery] = field(default_factory=deque)
    sending: int = 0
    put_off: int = 0  # since this host was last idle


class Traffic:
    """Deliveries claimed by this process: waiting in a line, or sending."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._troubled: OrderedDict[str, None] = OrderedDict()
        self.sending = 0

    @property
    def held(self) -> int:
        return self.sending + sum(len(host.waiting) for host in self._hosts.values())

    def admit(self, delivery: Delivery) -> float:
        """Take it into its host's line: 0.0; or the seconds that it must be put off."""
        name = host_of(delivery)
        host = self._hosts.setdefault(name, _Host())
        is_troubled = name in self._troubled
        room = self._limit(name) - host.sending + (0 if is_troubled else self._lanes.line_max)
        if len(host.waiting) < room:
            host.waiting.append(delivery)
            return 0.0
        host.put_off += 1
        if is_troubled:
            first_s, step_s = self._lanes.put_off_troubled_s, self._lanes.put_off_troubled_step_s
        else:
            first_s, step_s = self._lanes.put_off_s, self._lanes.put_off_step_s
        return first_s + host.put_off * step_s

    def next(self) -> Delivery | None:
        """The next delivery that may be sent, counted as sending; hosts take turns."""
        if self.sending >= self._lanes.at_once:
            return None
        for name, host in self._hosts.items():
            if host.waiting and host.sending < self._limit(name):
                self._hosts.move_to_end(name)
                host.sending += 1
                self.sending += 1
                return host.waiting.popleft()
        return None

    def done(self, delivery: Delivery, *, is_good: bool | None) -> None:
        """One has been sent, has failed, or (None) never got as far as its receiver."""
        name = host_of(delivery)
        if is_good:
            self._troubled.pop(name, None)
        elif is_good is False:
            self._troubled[name] = None
            self._troubled.move_to_end(name)
            while len(self._troubled) > TROUBLED_MAX:
                self._troubled.popitem(last=False)
        host = self._hosts[name]
        host.sending -= 1
        self.sending -= 1
        if not host.sending and not host.waiting:
            del self._hosts[name]

    def spill(self) -> list[Delivery]:
        """Take out of the lines what has no place there since its host is in trouble."""
        spilt: list[Delivery] = []
        for name, host in self._hosts.items():
            if name in self._troubled:
                room = max(0, self._limit(name) - host.sending)
                while len(host.waiting) > room:
                    spilt.append(host.waiting.pop())
        return spilt

    def drain(self) -> list[Delivery]:
        """Empty all lines; what is being sent goes on."""
        waiting = [delivery for host in self._hosts.values() for delivery in host.waiting]
        for host in self._hosts.values():
            host.waiting.clear()
        return waiting

    def _limit(self, name: str) -> int:
        lanes = self._lanes
        return lanes.per_troubled_host if name in self._troubled else lanes.per_host
