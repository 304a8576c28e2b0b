"""Does stepwise scheduling serve a mixed queue better than first come first served?

A discrete-event simulation of one device under Poisson arrivals: 55 % edits at 1 MP, 25 % text to
image at 1024, 10 % edits at 512, 10 % text to image at 512, 28 steps each, 45 ms of encoding and
decoding that stall the device under every policy. Forwards take what the physics of FLUX.1 on an
H200 says (`cost.of_rates`), times a little noise. Five policies see the same arrivals:

- fifo: one request after the other, each to its end (diffusers, most servers)
- same shape: the first request and up to seven of equal size behind it, all to their end
- stepwise fifo: equal sizes join between steps, whoever is first decides; nobody overtakes
- pack: up to eight of any size share every forward
- fluxserve: the very scheduler of the local engine, its cost model fitted to noisy timings

    python -m bench.scheduling [--requests 3000] [--seeds 3] [--loads 0.6 0.85 0.97] [--overhead]

Prints a table and one JSON line a load. `--overhead` measures what a turn of our scheduler costs.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fluxserve.engines.local.cost import (
    CostModel,
    Load,
    Shape,
    Timing,
    calibration_shapes,
    full,
    load_of,
    of_rates,
)
from fluxserve.engines.local.policy import Policy, Sample
from fluxserve.engines.local.scheduler import Scheduler

STEPS = 28
ENCODE_S, DECODE_S = 0.020, 0.025
COMPANY_MAX = 8
NOISE = 0.02  # relative spread of a step around its prediction

# share of the requests, name, rows of image, reference and text
MIX = (
    (0.55, "edit 1 MP", 8704),
    (0.25, "1024", 4608),
    (0.10, "edit 512", 2560),
    (0.10, "512", 1536),
)

H200 = CostModel(
    of_rates(
        dim=3072,
        blocks=57,
        gemm_flops_per_s=700e12,
        attention_flops_per_s=640e12,
        bytes_per_s=4.3e12,
    )
)


@dataclass(slots=True, eq=False)
class Request:
    id: str
    name: str
    shape: Shape
    arrives: float
    left: int = STEPS
    done: float = 0.0
    bound_s: float = 0.0  # fluxserve only: how long it may wait, as promised when it came

    @property
    def alone_s(self) -> float:
        return STEPS * H200.alone(self.shape) + ENCODE_S + DECODE_S

    @property
    def latency_s(self) -> float:
        return self.done - self.arrives


@dataclass(slots=True)
class Turn:
    """What the device does next, for how long, and who is ready afterwards."""

    seconds: float
    finished: list[Request]


class Queue(Protocol):
    def arrive(self, request: Request, now: float) -> float:
        """Take it in; returns the seconds that this stalls the device."""
        ...

    def turn(self, now: float) -> Turn | None: ...


@dataclass(slots=True)
class Noise:
    """Step times as a device gives them: the prediction, a little off."""

    draw: random.Random

    def seconds(self, load: Load) -> float:
        return H200.seconds(load) * (1 + self.draw.gauss(0, NOISE))


@dataclass(slots=True)
class SameShape:
    """Whole requests at a time; `company` of equal shape share them. 1: plain fifo."""

    noise: Noise
    company: int
    waiting: list[Request] = field(default_factory=list)

    def arrive(self, request: Request, now: float) -> float:
        self.waiting.append(request)
        return 0.0

    def turn(self, now: float) -> Turn | None:
        if not self.waiting:
            return None
        shape = self.waiting[0].shape
        batch = [request for request in self.waiting if request.shape == shape][: self.company]
        self.waiting = [request for request in self.waiting if request not in batch]
        load = load_of(request.shape for request in batch)
        seconds = sum(self.noise.seconds(load) for _ in range(STEPS))
        return Turn(seconds + len(batch) * (ENCODE_S + DECODE_S), batch)


@dataclass(slots=True)
class Stepwise:
    """One step at a time; the waiting join in order of arrival, up to eight."""

    noise: Noise
    any_shape: bool
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)

    def arrive(self, request: Request, now: float) -> float:
        self.waiting.append(request)
        return 0.0

    def turn(self, now: float) -> Turn | None:
        joined = 0
        while self.waiting and len(self.running) < COMPANY_MAX:
            fits = self.any_shape or all(r.shape == self.waiting[0].shape for r in self.running)
            if not fits:
                break
            self.running.append(self.waiting.pop(0))
            joined += 1
        if not self.running:
            return None
        for request in self.running:
            request.left -= 1
        finished = [request for request in self.running if not request.left]
        seconds = self.noise.seconds(load_of(request.shape for request in self.running))
        self.running = [request for request in self.running if request.left]
        return Turn(seconds + joined * ENCODE_S + len(finished) * DECODE_S, finished)


class Ours:
    """The scheduler of the local engine."""

    def __init__(self, noise: Noise, policy: Policy) -> None:
        timings = [
            Timing(load_of(shapes), noise.seconds(load_of(shapes)))
            for shapes in calibration_shapes(8704)
        ]
        self.cost = CostModel.fitted(timings)
        self.policy = policy
        self.scheduler = Scheduler({"": self.cost}, policy)
        self.noise = noise
        self.known: dict[str, Request] = {}
        self.stalled_s = 0.0  # encoding and decoding so far

    def arrive(self, request: Request, now: float) -> float:
        before = sum(r.left * H200.alone(r.shape) for r in self.known.values())
        sample = Sample(
            id=request.id,
            job_id=request.id,
            plan=(request.shape,) * STEPS,
            submitted_at=request.arrives,
        )
        self.scheduler.add(sample)
        self.known[request.id] = request
        patience = self.scheduler.overtaken(request.id)[1]
        # What must run before it, the patience, the step it found running and one that overshoots.
        step_s = 2 * H200.alone(full(8704))
        request.bound_s = before + patience + step_s - self.stalled_s
        self.stalled_s += ENCODE_S
        return ENCODE_S

    def turn(self, now: float) -> Turn | None:
        step = self.scheduler.schedule(now)
        if step is None:
            return None
        seconds = self.noise.seconds(step.load)
        done = [self.known.pop(sample.id) for sample in self.scheduler.finish(step, seconds)]
        for move in step.moves:
            if move.sample_id in self.known:
                self.known[move.sample_id].left -= 1
        self.stalled_s += len(done) * DECODE_S
        for request in done:
            request.bound_s += self.stalled_s
        return Turn(seconds + len(done) * DECODE_S, done)


def arrivals(count: int, load: float, seed: int) -> list[Request]:
    """The same for every policy: `load` is the share of the device they need, one at a time."""
    draw = random.Random(seed)
    mean_s = sum(
        share * (STEPS * H200.alone(full(rows)) + ENCODE_S + DECODE_S) for share, _, rows in MIX
    )
    now, result = 0.0, []
    for number in range(count):
        now += draw.expovariate(load / mean_s)
        _, name, rows = draw.choices(MIX, weights=[share for share, _, _ in MIX])[0]
        result.append(Request(f"r{number}", name, full(rows), now))
    return result


def simulate(queue: Queue, requests: Sequence[Request]) -> None:
    """Run the requests through the queue; fills in when each was done."""
    now, coming = 0.0, list(reversed(requests))
    while True:
        while coming and coming[-1].arrives <= now:
            now += queue.arrive(coming.pop(), now)
        turn = queue.turn(now)
        if turn is not None:
            now += turn.seconds
            for request in turn.finished:
                request.done = now
        elif coming:
            now = max(now, coming[-1].arrives)
        else:
            return


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@dataclass(frozen=True, slots=True)
class Result:
    mean_s: float
    p95_s: float
    slowdown: float
    small_p95_s: float
    large_p95_s: float
    wait_max_s: float
    bound_used: float | None  # the largest share that any request used of the wait promised to it
    beyond: int | None  # requests that waited longer than promised


def judge(requests: Sequence[Request]) -> Result:
    latency = [request.latency_s for request in requests]
    waits = [request.latency_s - request.alone_s for request in requests]
    promised = [(wait, r.bound_s) for wait, r in zip(waits, requests, strict=True) if r.bound_s]
    return Result(
        mean_s=statistics.mean(latency),
        p95_s=quantile(latency, 0.95),
        slowdown=statistics.mean(r.latency_s / r.alone_s for r in requests),
        small_p95_s=quantile([r.latency_s for r in requests if r.name == "512"], 0.95),
        large_p95_s=quantile([r.latency_s for r in requests if r.name == "edit 1 MP"], 0.95),
        wait_max_s=max(waits),
        bound_used=max(wait / bound for wait, bound in promised) if promised else None,
        beyond=sum(wait > bound for wait, bound in promised) if promised else None,
    )


def policies(policy: Policy) -> dict[str, Callable[[Noise], Queue]]:
    return {
        "fifo": lambda noise: SameShape(noise, 1),
        "same shape": lambda noise: SameShape(noise, COMPANY_MAX),
        "stepwise fifo": lambda noise: Stepwise(noise, any_shape=False),
        "pack": lambda noise: Stepwise(noise, any_shape=True),
        "fluxserve": lambda noise: Ours(noise, policy),
    }


def compare(count: int, seeds: int, load: float, policy: Policy) -> dict[str, Result]:
    """Every policy over the same arrivals, all seeds pooled."""
    pooled: dict[str, list[Request]] = {}
    for seed in range(seeds):
        for name, make in policies(policy).items():
            requests = arrivals(count, load, seed)
            simulate(make(Noise(random.Random(seed))), requests)
            pooled.setdefault(name, []).extend(requests)
    return {name: judge(requests) for name, requests in pooled.items()}


def overhead(waiting: int, turns: int = 300) -> tuple[float, float]:
    """Median and 95th percentile seconds of one schedule and finish with that many jobs waiting."""
    scheduler = Scheduler({"": CostModel(H200.coefficients)})
    draw = random.Random(0)
    for number in range(waiting):
        rows = draw.choices(MIX, weights=[share for share, _, _ in MIX])[0][2]
        scheduler.add(
            Sample(
                id=f"s{number}",
                job_id=f"s{number}",
                plan=(full(rows),) * STEPS,
                submitted_at=0.0,
                key=f"key {number % 7}",
            )
        )
    spent, now = [], 0.0
    for _ in range(turns):
        began = time.perf_counter()
        step = scheduler.schedule(now)
        if step is None:
            break
        scheduler.finish(step, step.seconds)
        spent.append(time.perf_counter() - began)
        now += step.seconds
    return statistics.median(spent), quantile(spent, 0.95)


def table(results: dict[str, Result]) -> str:
    head = f"{'':14}{'mean':>7}{'p95':>8}{'slowdown':>10}{'512 p95':>9}{'1 MP p95':>10}"
    lines = [head + f"{'longest wait':>14}"]
    for name, r in results.items():
        line = f"{name:14}{r.mean_s:7.1f}{r.p95_s:8.1f}{r.slowdown:10.2f}{r.small_p95_s:9.1f}"
        line += f"{r.large_p95_s:10.1f}{r.wait_max_s:14.1f}"
        if r.bound_used is not None:
            line += f"   of the promised wait: {r.bound_used:.0%} used, {r.beyond} beyond"
        lines.append(line)
    return "\n".join(lines)


def report_overhead() -> None:
    step_s = H200.alone(full(1536))
    for waiting in (1, 8, 32, 100, 300):
        median, p95 = overhead(waiting)
        print(
            f"{waiting:4} waiting: {median * 1e6:6.0f} us a turn, p95 {p95 * 1e6:6.0f} us;"
            f" {median / step_s:.2%} of a 512 step"
        )
        figures = {"waiting": waiting, "median_s": median, "p95_s": p95}
        print(json.dumps({"bench": "scheduling overhead", **figures}))


def main() -> None:
    known = Policy()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.60, 0.85, 0.97])
    parser.add_argument("--ageing", type=float, default=known.ageing)
    parser.add_argument("--patience-s", type=float, default=known.patience_s)
    parser.add_argument("--patience-ratio", type=float, default=known.patience_ratio)
    parser.add_argument("--overhead", action="store_true")
    args = parser.parse_args()
    if args.overhead:
        report_overhead()
        return
    policy = Policy(
        ageing=args.ageing, patience_s=args.patience_s, patience_ratio=args.patience_ratio
    )
    for load in args.loads:
        results = compare(args.requests, args.seeds, load, policy)
        print(f"\nload {load:.2f}, {args.seeds} x {args.requests} requests; seconds")
        print(table(results))
        figures = {
            name: {key: getattr(r, key) for key in Result.__slots__} for name, r in results.items()
        }
        print(json.dumps({"bench": "scheduling", "load": load, "results": figures}))


if __name__ == "__main__":
    main()
