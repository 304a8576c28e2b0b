"""What the scheduler takes and gives: samples, steps, forecasts, and its knobs. Plain values."""

from dataclasses import dataclass
from typing import NamedTuple

from fluxserve.engines.local.cost import Load, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The knobs of the scheduler; seconds are device time."""

    rows_max: int = 6144  # token rows of one forward; a single larger sample runs alone
    samples_max: int = 16  # samples of one forward
    gain_min: float = 0.03  # company must gain this much throughput, relative
    ageing: float = 0.10  # 0: strictly least remaining time first
    patience_s: float = 30.0  # by how much later arrivals may delay a job ...
    patience_ratio: float = 0.5  # ... plus this times the work that was before it when it came
    lead_max_s: float = 20.0  # a key of weight 1 may be that far ahead of its fair share
    quantum_steps: int = 3  # the running samples are kept that long ...
    quantum_margin: float = 0.10  # ... unless another job is better by this much

    def __post_init__(self) -> None:
        for name in ("rows_max", "samples_max", "quantum_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, not {getattr(self, name)}")
        for name in ("gain_min", "ageing", "patience_s", "patience_ratio", "lead_max_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: 0 or more, not {getattr(self, name)}")
        if not 0 <= self.quantum_margin < 1:
            raise ValueError(f"quantum_margin: from 0 to below 1, not {self.quantum_margin}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image to be made, as the scheduler sees it. Times are seconds on the caller's clock."""

    id: str
    job_id: str  # the prediction; it is done when all of its samples are
    plan: tuple[Shape, ...]  # one a step; rows == 0: that step is extrapolated, without a forward
    submitted_at: float
    batch_class: str = ""  # model and precision; only equal ones share a forward
    key: str = ""  # who asks, for fair shares
    weight: float = 1.0  # of the key
    priority: int = 0  # higher goes first
    deadline: float | None = None
    alone: bool = False  # never shares a forward, for results that no neighbour can touch


class Move(NamedTuple):
    """What one sample does in a step: a forward, then `levels - 1` extrapolated levels for free."""

    sample_id: str
    levels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward: every sample in it moves `levels` noise levels down."""

    number: int
    batch_class: str
    moves: tuple[Move, ...]
    load: Load
    seconds: float  # predicted

    @property
    def sample_ids(self) -> tuple[str, ...]:
        return tuple(move.sample_id for move in self.moves)


class Forecast(NamedTuple):
    """Where a job stands if nothing else arrives."""

    position: int  # jobs that finish before it; 0: it is the next to finish
    finish_at: float  # on the caller's clock
