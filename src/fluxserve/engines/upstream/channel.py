"""Channels: one account at one provider each, and how well it is doing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from fluxserve.core.errors import StartupError
from fluxserve.core.request import JSON


class ChannelKind(StrEnum):
    REPLICATE = "replicate"
    BFL = "bfl"
    WAVESPEED = "wavespeed"
    OPENAI = "openai"
    FLUXSERVE = "fluxserve"


class OnUnknown(StrEnum):
    """What becomes of a submission whose outcome nobody can tell."""

    FAIL = "fail"
    RESUBMIT = "resubmit"  # it may be paid for twice


_VERSION_PATH: Mapping[ChannelKind, str] = {
    ChannelKind.REPLICATE: "/v1",
    ChannelKind.BFL: "/v1",
    ChannelKind.WAVESPEED: "/api/v3",
    ChannelKind.OPENAI: "/v1",
    ChannelKind.FLUXSERVE: "/fluxserve/v1",
}


# A submission is waited for at least this long, where its answer is the picture itself.
_SUBMITS_S: Mapping[ChannelKind, float] = {ChannelKind.OPENAI: 300.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """One account at one provider, as configured. Times are seconds."""

    name: str
    kind: ChannelKind
    base_url: str  # an origin or a prefix, with or without the API's version path
    key: str = field(repr=False)
    models: Mapping[str, str]  # our public name or pattern with * -> theirs; "" keeps the name
    priority: int = 0
    weight: float = 1.0
    concurrency: int = 100  # submissions the provider may be working on at once; 0: no bound
    on_unknown: OnUnknown = OnUnknown.FAIL
    reconcile_grace_s: float = 60.0  # a submission not listed by then never happened
    cool_down_s: float = 5.0  # first rest after trouble; doubles up to `cool_down_max_s`
    cool_down_max_s: float = 120.0
    patience_s: float = 120.0  # a prediction waits this long for a channel that cannot take it
    connect_timeout_s: float = 10.0
    submit_timeout_s: float = 60.0
    poll_s: float = 0.5  # before the first poll, as official clients wait; grows to `poll_max_s`
    poll_max_s: float = 10.0
    deadline_s: float = 1800.0  # an accepted submission that takes longer is given up
    output_max_bytes: int = 64 * 1024 * 1024
    rename: Mapping[str, str] = field(default_factory=dict)  # input field -> name; "" drops it
    extra: Mapping[str, JSON] = field(default_factory=dict)  # input fields added to each request
    key_header: str = ""  # "bearer" or "x-key", where a reseller differs from its kind

    @property
    def root(self) -> str:
        """The base of every path: `base_url` with the version path of its kind, no end slash."""
        base = self.base_url.rstrip("/")
        version = _VERSION_PATH[self.kind]
        return base if base.endswith(version) else base + version

    def their_model(self, names: tuple[str, ...]) -> str | None:
        """What they call the model that we know by `names` (id first); None: not theirs."""
        for pattern, theirs in self.models.items():
            for name in names:
                if fnmatchcase(name.lower(), pattern.lower()):
                    return theirs or self._usual(names)
        return None

    def _usual(self, names: tuple[str, ...]) -> str:
        """The name that services of this kind give to a model of ours."""

        def first(fits: Callable[[str], bool]) -> str:
            return next(filter(fits, names), names[0])

        match self.kind:
            case ChannelKind.WAVESPEED:
                return first(lambda name: name.startswith("wavespeed-ai/"))
            case ChannelKind.BFL | ChannelKind.OPENAI:
                return first(lambda name: "/" not in name)
            case _:
                return names[0]


def check(spec: ChannelSpec) -> ChannelSpec:
    """The spec to work by, with the patience its kind needs; StartupError where it cannot work.

    All who work on the channel have to go by the same times: one that expects a submission to be
    over while another still waits for its answer would take it for lost.
    """
    if not spec.base_url.startswith(("http://", "https://")):
        raise StartupError(f"upstream {spec.name}: base_url must start with http:// or https://")
    if not spec.key and spec.kind is not ChannelKind.FLUXSERVE:
        raise StartupError(f"upstream {spec.name}: set the environment variable of key_env")
    if not spec.models:
        raise StartupError(f"upstream {spec.name}: models must name at least one model")
    longest_s = max(spec.submit_timeout_s, _SUBMITS_S.get(spec.kind, 0.0))
    return replace(spec, submit_timeout_s=longest_s)


class ChannelState(StrEnum):
    READY = "ready"
    RESTING = "resting"  # after trouble, until `rests_until`
    PROBING = "probing"  # one submission is let through to see whether it works again


@dataclass(slots=True)
class ChannelHealth:
    """What is known of a channel in this process; `clock` is monotonic seconds."""

    spec: ChannelSpec
    clock: Callable[[], float]
    trouble: str = ""  # the last one, in a sentence
    failures: int = 0  # in a row
    rests_until: float = 0.0
    open: int = 0  # submissions the provider may be working on
    coming: int = 0  # handed on from fuller channels, and not claimed yet
    submitted: int = 0
    refused: int = 0
    unknown: int = 0
    resubmitted: int = 0
    unresolved: int = 0  # rows in state unknown, of all processes, when last counted

    @property
    def state(self) -> ChannelState:
        if self.clock() < self.rests_until:
            return ChannelState.RESTING
        return ChannelState.PROBING if self.rests_until and self.failures else ChannelState.READY

    @property
    def room(self) -> int:
        """Submissions it can take now."""
        if self.state is ChannelState.RESTING:
            return 0
        bound = self.spec.concurrency or 1_000_000
        if self.state is ChannelState.PROBING:
            bound = min(bound, self.open + 1)
        return max(0, bound - self.open)

    @property
    def free(self) -> int:
        """What is left of `room` by those that are on their way here."""
        return max(0, self.room - self.coming)

    def went_well(self) -> None:
        self.failures = 0
        self.trouble = ""
        self.rests_until = 0.0

    def had_trouble(self, reason: str, *, rest_s: float | None = None, tolerated: int = 0) -> None:
        """Rest: for `rest_s` where the provider said how long, else longer each time.

        `tolerated` troubles in a row cost no rest.
        """
        self.failures += 1
        self.trouble = reason
        if self.failures <= tolerated:
            return
        longest = self.spec.cool_down_max_s
        doubled = self.spec.cool_down_s * 2.0 ** min(self.failures - tolerated - 1, 16)
        self.rests_until = self.clock() + min(longest, doubled if rest_s is None else rest_s)
