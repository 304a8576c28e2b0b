"""How long a forward takes, told from its shapes: fitted when idle, kept true by every step.

A forward over samples with `rows` token rows each, whose rows attend to `keys` keys each, takes

    fixed + per_sample * samples + per_row * sum(rows) + per_pair * sum(rows * keys)

seconds. The linears of a transformer cost the same for every row, attention costs rows times keys,
and a GEMM that fills the device only beyond some rows (time ~ (N + N0) / rate) is again a fixed
part plus a part per row; so four numbers are enough for one model in one precision on one device.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Measurements remembered, one a distinct load; the oldest is forgotten first.
LOADS_MAX = 64
# A refit walks all remembered loads, so it runs once in that many observed steps.
REFIT_STEPS = 16
# How much one new measurement moves what is remembered of its load, and of the error.
BLEND = 0.25
ERROR_BLEND = 0.05
# Columns of the fit have length one; how strongly it is drawn to nothing, or to what was known.
RIDGE_BLANK = 1e-9
RIDGE_PRIOR = 1e-2
# A single step may be this many times off before it is cut: a hiccup, not news.
OUTLIER = 4.0


class Shape(NamedTuple):
    """What one sample brings into a forward. `rows == 0`: nothing, that step is extrapolated."""

    rows: int  # image, reference and text tokens that go through the linears
    keys: int  # tokens that each row attends to; more than rows where reference K/V is reused


class Load(NamedTuple):
    """What one forward has to do in all; loads of disjoint sets of samples add up."""

    samples: int = 0
    rows: int = 0
    pairs: int = 0

    def plus(self, shape: Shape) -> "Load":
        rows, keys = shape
        return Load(self.samples + 1, self.rows + rows, self.pairs + rows * keys)


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed forward."""

    load: Load
    seconds: float


class Coefficients(NamedTuple):
    """Seconds, per forward, sample, row and row-key pair; none is negative."""

    fixed: float
    per_sample: float
    per_row: float
    per_pair: float


def load_of(shapes: Iterable[Shape]) -> Load:
    load = Load()
    for shape in shapes:
        load = load.plus(shape)
    return load


def full(rows: int) -> Shape:
    """A sample whose rows attend to each other, as in an ordinary step."""
    return Shape(rows, rows)


def of_rates(
    *,
    dim: int,
    blocks: int,
    gemm_flops_per_s: float,
    attention_flops_per_s: float,
    bytes_per_s: float,
    launch_s: float = 1.5e-3,
) -> Coefficients:
    """The physics of a FLUX transformer before anything was timed.

    `dim` is the model width, `blocks` the number of double and single blocks (57 for FLUX.1). A row
    passes 12 dim^2 weights a block; a GEMM reaches 0.98 N / (N + 200) of its rate with N rows;
    elementwise work moves 1000 * 2 * dim bytes a row; attention takes 4 dim flops a pair and block.
    """
    gemm_s = 2 * 12 * dim**2 * blocks / (0.98 * gemm_flops_per_s)
    return Coefficients(
        fixed=launch_s + 200 * gemm_s,
        per_sample=0.0,
        per_row=gemm_s + 1000 * 2 * dim / bytes_per_s,
        per_pair=4 * dim * blocks / attention_flops_per_s,
    )


def calibration_shapes(rows_max: int) -> tuple[tuple[Shape, ...], ...]:
    """Twelve forwards, up to `rows_max` rows in all, whose timings tell the four numbers apart."""
    if rows_max < 16:
        raise ValueError(f"rows_max: at least 16, not {rows_max}")
    alone = [max(4, rows_max * part // 32) for part in (1, 2, 4, 8, 16, 24, 32)]
    packed = [(2, 2), (4, 8), (2, 8), (4, 32), (8, 32)]  # how many, and which part of 1/32 in all
    return tuple((full(rows),) for rows in alone) + tuple(
        (full(max(4, rows_max * part // 32 // count)),) * count for count, part in packed
    )


def fit(timings: Sequence[Timing], prior: Coefficients | None = None) -> Coefficients:
    """Least squares over relative errors, so that small forwards count as much as large ones.

    With a `prior`, what the timings do not tell apart stays as it was, in proportion. A number that
    would come out negative is held at zero and the others are fitted again. Raises ValueError
    without timings or with one that took no time.
    """
    if not timings:
        raise ValueError("timings: at least one is needed to fit a cost model")
    if any(timing.seconds <= 0 for timing in timings):
        raise ValueError("timings: every forward takes more than zero seconds")
    rows = [[value / timing.seconds for value in (1, *timing.load)] for timing in timings]
    # Columns differ by ten orders of magnitude; scaled to a length of one they solve cleanly.
    scale = [sum(row[i] ** 2 for row in rows) ** 0.5 or 1.0 for i in range(4)]
    rows = [[value / size for value, size in zip(row, scale, strict=True)] for row in rows]
    start, ridge = [0.0] * 4, RIDGE_BLANK
    if prior is not None:
        start, ridge = [c * size for c, size in zip(prior, scale, strict=True)], RIDGE_PRIOR
        said = [sum(a * z for a, z in zip(row, start, strict=True)) for row in rows]
        faster = sum(said) / sum(value * value for value in said)
        start = [value * faster for value in start]
    active, solved = [0, 1, 2, 3], [0.0] * 4
    while active:
        answer = _solve(*_normal_equations(rows, active, start, ridge))
        solved = [0.0] * 4
        for i, value in zip(active, answer, strict=True):
            solved[i] = value
        lowest = min(active, key=lambda i: solved[i])
        if solved[lowest] >= 0:
            break
        active.remove(lowest)
    return Coefficients(*(value / size for value, size in zip(solved, scale, strict=True)))


def _normal_equations(
    rows: Sequence[Sequence[float]], active: Sequence[int], start: Sequence[float], ridge: float
) -> tuple[list[list[float]], list[float]]:
    """For the active columns: target 1 in every row, drawn towards `start` with weight `ridge`."""
    matrix = [
        [sum(row[i] * row[j] for row in rows) + (ridge if i == j else 0.0) for j in active]
        for i in active
    ]
    return matrix, [sum(row[i] for row in rows) + ridge * start[i] for i in active]


def _solve(matrix: list[list[float]], target: list[float]) -> list[float]:
    """Gauss elimination with pivoting; the ridge keeps the matrix regular."""
    size = len(target)
    wide = [[*row, value] for row, value in zip(matrix, target, strict=True)]
    for i in range(size):
        best = max(range(i, size), key=lambda r: abs(wide[r][i]))
        wide[i], wide[best] = wide[best], wide[i]
        for r in range(i + 1, size):
            factor = wide[r][i] / wide[i][i]
            wide[r] = [a - factor * b for a, b in zip(wide[r], wide[i], strict=True)]
    answer = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(wide[i][j] * answer[j] for j in range(i + 1, size))
        answer[i] = (wide[i][size] - rest) / wide[i][i]
    return answer


class CostModel:
    """Predicts the seconds of a forward for one batch class, and learns from every step.

    `version` grows whenever predictions change, so that sums of them can be kept until then.
    """

    def __init__(self, coefficients: Coefficients) -> None:
        if min(coefficients) < 0 or sum(coefficients) <= 0:
            raise ValueError(f"coefficients: none negative, not all zero, not {coefficients}")
        self.coefficients = coefficients
        self.version = 0
        self._remembered: OrderedDict[Load, float] = OrderedDict()
        self._steps = 0
        self._error = 0.0

    @classmethod
    def fitted(cls, timings: Sequence[Timing]) -> "CostModel":
        """From timed shapes, as a rule `calibration_shapes`; several of one shape average."""
        model = cls(fit(timings))
        model.learn(timings)
        return model

    def learn(self, timings: Sequence[Timing]) -> None:
        """Fit anew, to timed shapes and to what is remembered of steps."""
        for timing in timings:
            self._remember(timing.load, timing.seconds)
        known = [Timing(load, seconds) for load, seconds in self._remembered.items()]
        is_enough = len(timings) >= len(Load._fields)
        self.coefficients = fit(known, prior=None if is_enough else self.coefficients)
        self._error = self._misfit()
        self.version += 1

    @property
    def error(self) -> float:
        """Relative error of late predictions, 0.05 for five percent; 0.0 before any measurement."""
        return self._error

    def seconds(self, load: Load) -> float:
        fixed, per_sample, per_row, per_pair = self.coefficients
        samples, rows, pairs = load
        return fixed + per_sample * samples + per_row * rows + per_pair * pairs

    def alone(self, shape: Shape) -> float:
        """Seconds of a forward with this sample only; none where the step is extrapolated."""
        rows, keys = shape
        return self.seconds(Load(1, rows, rows * keys)) if rows else 0.0

    def observe(self, load: Load, measured_s: float) -> None:
        """Learn from one step. Raises ValueError where it took no time."""
        if measured_s <= 0:
            raise ValueError(f"measured_s: more than zero, not {measured_s}")
        expected = self.seconds(load)
        miss = min(abs(measured_s - expected) / measured_s, 1.0)
        self._error = (
            miss if not self._remembered else self._error + ERROR_BLEND * (miss - self._error)
        )
        self._remember(load, min(max(measured_s, expected / OUTLIER), expected * OUTLIER))
        self._steps += 1
        # Until the first full round the prior may be far off: then every step counts.
        if self._steps % REFIT_STEPS == 0 or (self._steps < REFIT_STEPS and miss > 0.1):
            timings = [Timing(load, seconds) for load, seconds in self._remembered.items()]
            self.coefficients = fit(timings, prior=self.coefficients)
            self.version += 1

    def _remember(self, load: Load, seconds: float) -> None:
        known = self._remembered.pop(load, seconds)
        self._remembered[load] = known + BLEND * (seconds - known)
        if len(self._remembered) > LOADS_MAX:
            self._remembered.popitem(last=False)

    def _misfit(self) -> float:
        """Mean relative error over what is remembered."""
        misses = [abs(self.seconds(load) - s) / s for load, s in self._remembered.items()]
        return sum(misses) / len(misses)
