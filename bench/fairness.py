"""Does a key that floods the server hold up a key that asks for little?

A discrete-event simulation with our scheduler and the costs of `scheduling.py`. The key `flood`
always has thirty edits at 512 waiting, more than the device can do; the key `quiet` asks for one
edit at 1 MP every thirty seconds, a quarter of the device. Four ways to serve them:

- fifo: one request after the other, in the order they came
- one key: our scheduler, told that all requests are of the same key
- fair: our scheduler, told who asks
- fair, 3 to 1: likewise, with three times the weight for `flood`

    python -m bench.fairness [--minutes 60]

Prints a table and one JSON line.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.scheduling import H200, STEPS
from fluxserve.engines.local.cost import CostModel, full, load_of
from fluxserve.engines.local.policy import Sample
from fluxserve.engines.local.scheduler import Scheduler

FLOOD_WAITING, FLOOD_ROWS = 30, 2560
QUIET_EVERY_S, QUIET_ROWS = 30.0, 8704


@dataclass(slots=True)
class Device:
    """Time, what arrives, and what each key was given."""

    ends_at: float
    now: float = 0.0
    given: dict[str, float] = field(default_factory=lambda: {"flood": 0.0, "quiet": 0.0})
    waits: list[float] = field(default_factory=list)  # latencies of quiet
    done: int = 0  # requests of flood

    def quiet_arrivals(self) -> Iterator[float]:
        return itertools.takewhile(
            lambda at: at < self.ends_at, itertools.count(QUIET_EVERY_S, QUIET_EVERY_S)
        )


def fifo(device: Device) -> None:
    """To the end, in order of arrival; flood asks again whenever one of its requests is done."""
    waiting: list[tuple[float, str]] = [(0.0, "flood")] * FLOOD_WAITING
    arrivals = list(device.quiet_arrivals())
    while device.now < device.ends_at:
        at, key = waiting.pop(0)
        rows = FLOOD_ROWS if key == "flood" else QUIET_ROWS
        seconds = STEPS * H200.alone(full(rows))
        before, device.now = device.now, device.now + seconds
        device.given[key] += seconds
        came = [(t, "quiet") for t in arrivals if before < t <= device.now]
        waiting += came
        if key == "quiet":
            device.waits.append(device.now - at)
        else:
            device.done += 1
            waiting.append((device.now, "flood"))


def scheduled(weights: tuple[float, float] | None) -> Callable[[Device], None]:
    """Our scheduler; without weights all requests are of one key."""

    def run(device: Device) -> None:
        scheduler = Scheduler({"": CostModel(H200.coefficients)})
        numbers, arrivals = itertools.count(), list(device.quiet_arrivals())
        came: dict[str, float] = {}

        def add(who: str, at: float) -> None:
            name, rows = f"{who} {next(numbers)}", FLOOD_ROWS if who == "flood" else QUIET_ROWS
            weight = 1.0 if weights is None else weights[who == "quiet"]
            came[name] = at
            scheduler.add(
                Sample(
                    id=name,
                    job_id=name,
                    plan=(full(rows),) * STEPS,
                    submitted_at=at,
                    key="" if weights is None else who,
                    weight=weight,
                )
            )

        for _ in range(FLOOD_WAITING):
            add("flood", 0.0)
        while device.now < device.ends_at:
            while arrivals and arrivals[0] <= device.now:
                add("quiet", arrivals.pop(0))
            step = scheduler.schedule(device.now)
            assert step is not None
            device.now += step.seconds
            alone = {
                name: H200.seconds(
                    load_of([full(FLOOD_ROWS if name.startswith("flood") else QUIET_ROWS)])
                )
                for name in step.sample_ids
            }
            for name, part in alone.items():
                device.given[name.split()[0]] += step.seconds * part / sum(alone.values())
            for sample in scheduler.finish(step, step.seconds):
                if sample.id.startswith("quiet"):
                    device.waits.append(device.now - came[sample.id])
                else:
                    device.done += 1
                    add("flood", device.now)

    return run


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    args = parser.parse_args()
    ways = {
        "fifo": fifo,
        "one key": scheduled(None),
        "fair": scheduled((1.0, 1.0)),
        "fair, 3 to 1": scheduled((3.0, 1.0)),
    }
    alone_s = STEPS * H200.alone(full(QUIET_ROWS))
    print(f"quiet: an edit at 1 MP, {alone_s:.1f} s alone, every {QUIET_EVERY_S:.0f} s")
    print(f"{'':14}{'mean':>8}{'p95':>8}{'slowdown':>10}{'share of quiet':>16}{'flood done':>12}")
    figures = {}
    for name, serve in ways.items():
        device = Device(ends_at=60 * args.minutes)
        serve(device)
        mean, p95 = statistics.mean(device.waits), quantile(device.waits, 0.95)
        share = device.given["quiet"] / sum(device.given.values())
        print(f"{name:14}{mean:8.1f}{p95:8.1f}{mean / alone_s:10.2f}{share:16.0%}{device.done:12}")
        figures[name] = {"mean_s": mean, "p95_s": p95, "share": share, "flood_done": device.done}
    print(json.dumps({"bench": "fairness", "results": figures}))


if __name__ == "__main__":
    main()
