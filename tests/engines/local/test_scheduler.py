"""The scheduler's promises: nobody starves, shares are fair, the budget holds, cancel is final."""

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxserve.engines.local.cost import Coefficients, CostModel, Shape, full, of_rates
from fluxserve.engines.local.policy import Policy, Sample, Step
from fluxserve.engines.local.scheduler import RECOVERY_STEPS, Scheduler

H200 = of_rates(
    dim=3072,
    blocks=57,
    gemm_flops_per_s=700e12,
    attention_flops_per_s=640e12,
    bytes_per_s=4.3e12,
)
SMALL, MEDIUM, LARGE = full(1536), full(4608), full(8704)
SKIP = Shape(0, 0)


def sample(name: str, shape: Shape = SMALL, *, at: float = 0.0, steps: int = 28) -> Sample:
    return Sample(id=name, job_id=name, plan=(shape,) * steps, submitted_at=at)


@dataclass
class Device:
    """A scheduler and the clock of a device that takes the predicted time, or a multiple of it."""

    policy: Policy = field(default_factory=Policy)
    slower: float = 1.0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler({"": CostModel(H200), "other": CostModel(H200)}, self.policy)
        self.done: list[str] = []
        self.done_at: dict[str, float] = {}
        self.given: dict[str, float] = {}

    def add(self, *samples: Sample) -> None:
        for each in samples:
            self.scheduler.add(each)

    def step(self) -> Step | None:
        step = self.scheduler.schedule(self.now)
        if step is None:
            return None
        seconds = step.seconds * self.slower
        self.now += seconds
        for name in step.sample_ids:
            self.given[name] = self.given.get(name, 0.0) + seconds / len(step.moves)
        for each in self.scheduler.finish(step, seconds):
            self.done.append(each.id)
            self.done_at[each.id] = self.now
        return step

    def run(self, steps: int = 100_000) -> list[str]:
        for _ in range(steps):
            if self.step() is None:
                break
        return self.done


# --- order ---------------------------------------------------------------------------------------


def test_a_small_job_overtakes_a_large_one_between_two_steps() -> None:
    device = Device()
    device.add(sample("large", LARGE))
    device.run(steps=3)
    device.add(sample("small", SMALL, at=device.now))
    assert device.run() == ["small", "large"]


def test_equal_jobs_finish_in_the_order_they_came() -> None:
    device = Device()
    device.add(*(sample(f"{i}", LARGE) for i in range(4)))
    assert device.run() == ["0", "1", "2", "3"]


def test_higher_priority_goes_first_whatever_the_size() -> None:
    device = Device()
    device.add(sample("small"), replace(sample("large", LARGE), priority=1))
    assert device.run() == ["large", "small"]


def test_a_deadline_that_is_getting_tight_overrides_the_order() -> None:
    device = Device()
    solo = 28 * CostModel(H200).alone(LARGE)
    device.add(sample("small"), replace(sample("large", LARGE), deadline=1.1 * solo))
    device.run()
    assert device.done_at["large"] <= 1.1 * solo
    assert sum(device.given.values()) > 1.1 * solo  # there was no time for both


def test_a_deadline_with_time_to_spare_waits_for_its_turn() -> None:
    device = Device()
    device.add(sample("small"), replace(sample("large", LARGE), deadline=1e6))
    assert device.run() == ["small", "large"]


def test_a_deadline_that_is_lost_already_delays_nobody() -> None:
    device = Device()
    device.add(sample("small"), replace(sample("large", LARGE), deadline=0.5))
    assert device.run() == ["small", "large"]


def test_running_samples_are_kept_for_a_quantum_when_little_is_at_stake() -> None:
    kept, eager = Device(), Device(Policy(quantum_steps=1))
    for device in (kept, eager):
        device.add(sample("first", full(8704)))
        device.step()
        device.add(sample("rival", full(8100), at=device.now))
    assert kept.step().sample_ids == ("first",)  # type: ignore[union-attr]
    assert eager.step().sample_ids == ("rival",)  # type: ignore[union-attr]


def test_a_job_that_is_not_ready_lets_others_pass_and_runs_once_it_is() -> None:
    device = Device()
    device.scheduler.add(sample("encoding", SMALL), ready=False)
    device.add(sample("large", LARGE))
    device.step()
    assert device.given.keys() == {"large"}
    device.scheduler.make_ready("encoding")
    assert device.run() == ["encoding", "large"]


# --- filling a forward ----------------------------------------------------------------------------


def test_a_large_image_runs_alone_and_small_ones_share_when_many_wait() -> None:
    device = Device()
    device.add(*(sample(f"small {i}", full(768)) for i in range(8)), sample("large", LARGE))
    widths = []
    while step := device.step():
        widths.append(len(step.moves))
        if "large" in step.sample_ids:
            assert len(step.moves) == 1
    assert max(widths) >= 3


def test_two_jobs_that_fill_the_device_are_not_packed() -> None:
    device = Device(Policy(rows_max=100_000))
    device.add(sample("a", LARGE), sample("b", LARGE))
    assert len(device.step().moves) == 1  # type: ignore[union-attr]


def test_outputs_of_one_job_share_a_forward_where_that_is_cheaper() -> None:
    device = Device()
    device.add(*(replace(sample(f"{i}", full(768)), job_id="job") for i in range(4)))
    assert len(device.step().moves) == 4  # type: ignore[union-attr]


def test_samples_of_another_class_or_that_must_be_alone_do_not_join() -> None:
    device = Device()
    device.add(*(sample(f"{i}", full(768)) for i in range(6)))
    device.add(*(replace(sample(f"o{i}", full(768)), batch_class="other") for i in range(6)))
    device.add(replace(sample("alone", full(768)), alone=True))
    while step := device.step():
        names = set(step.sample_ids)
        assert "alone" not in names or len(names) == 1
        assert len({name.startswith("o") for name in names}) == 1


def test_an_extrapolated_step_needs_no_forward() -> None:
    device = Device()
    plan = (MEDIUM, SKIP, SKIP, MEDIUM, MEDIUM, SKIP)
    device.add(replace(sample("skips"), plan=plan))
    levels = []
    while step := device.step():
        levels.append(step.moves[0].levels)
    assert levels == [3, 1, 2]
    assert device.now == pytest.approx(3 * CostModel(H200).alone(MEDIUM))


def test_a_changed_plan_changes_what_remains() -> None:
    device = Device()
    device.add(replace(sample("a"), plan=(MEDIUM, SKIP, MEDIUM)))
    device.step()
    device.scheduler.replan("a", (MEDIUM, MEDIUM))
    assert device.scheduler.eta("a", device.now) == pytest.approx(2 * CostModel(H200).alone(MEDIUM))
    assert device.run() == ["a"]


# --- nobody starves -------------------------------------------------------------------------------

JOBS = st.lists(
    st.tuples(
        st.floats(0, 3),  # seconds after the one before
        st.sampled_from([768, 1536, 2560, 4608, 8704]),
        st.integers(1, 30),  # steps
        st.integers(1, 3),  # outputs
        st.integers(-1, 1),  # priority
        st.sampled_from(["a", "b", "c"]),  # key
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(JOBS, st.floats(0.5, 2.0), st.floats(0, 5))
def test_nobody_is_overtaken_beyond_patience_and_one_step(
    jobs: list[tuple[float, int, int, int, int, str]], slower: float, patience_s: float
) -> None:
    device = Device(Policy(patience_s=patience_s, lead_max_s=2.0), slower=slower)
    coming, at = [], 0.0
    for number, (gap, rows, steps, outputs, priority, key) in enumerate(jobs):
        at += gap
        for i in range(outputs):
            one = sample(f"{number}.{i}", full(rows), at=at, steps=steps)
            coming.append(replace(one, job_id=f"{number}", priority=priority, key=key))
    longest, total = 0.0, sum(len(each.plan) for each in coming)
    for _ in range(total + len(coming)):
        while coming and coming[0].submitted_at <= device.now:
            device.add(coming.pop(0))
        before = device.now
        step = device.step()
        if step is None:
            if not coming:
                break
            device.now = coming[0].submitted_at
            continue
        longest = max(longest, device.now - before)
        assert step.load.rows <= device.policy.rows_max or len(step.moves) == 1
        assert len(step.moves) <= device.policy.samples_max
        for number in range(len(jobs)):
            if f"{number}" in device.scheduler:
                overtaken, patience = device.scheduler.overtaken(f"{number}")
                assert overtaken <= patience + longest + 1e-6
    assert len(device.done) == sum(job[3] for job in jobs)
    assert len(device.scheduler) == 0


def test_a_stream_of_small_jobs_delays_a_large_one_by_its_patience_at_most() -> None:
    device = Device(Policy(patience_s=10.0, ageing=0.0))
    device.add(sample("large", LARGE))
    number = 0
    while "large" not in device.done_at:
        if device.now * 2 >= number:  # two small jobs a second: more than the device can do
            device.add(sample(f"small {number}", SMALL, at=device.now))
            number += 1
        assert device.step() is not None
    assert device.done_at["large"] <= 28 * CostModel(H200).alone(LARGE) + 10.0 + 1.0
    assert device.done_at["large"] > 10.0  # they did go first as long as it had patience


def test_a_backlog_still_lets_small_jobs_pass_now_and_then() -> None:
    device = Device(Policy(patience_s=5.0))
    device.add(*(sample(f"large {i}", LARGE) for i in range(40)))
    device.run(steps=30)
    waits = []
    for number in range(20):
        device.add(sample(f"small {number}", SMALL, at=device.now))
        added = device.now
        while f"small {number}" not in device.done_at:
            device.step()
        waits.append(device.now - added)
    fifo_s = 39 * 28 * CostModel(H200).alone(LARGE)
    assert max(waits) < fifo_s / 4


def test_low_priority_moves_on_under_a_flood_of_high_priority() -> None:
    device = Device(Policy(patience_s=3.0))
    device.add(replace(sample("patient", SMALL), priority=-1))
    for number in range(400):
        device.add(replace(sample(f"vip {number}", SMALL, at=device.now), priority=5))
        device.step()
        if "patient" in device.done_at:
            break
    assert device.done_at["patient"] < 3.0 + 28 * CostModel(H200).alone(SMALL) + 1.0


# --- fair shares ----------------------------------------------------------------------------------


def shared(
    policy: Policy, weight: float, rows_a: int, rows_b: int, seed: int
) -> tuple[float, float]:
    """Device seconds of two keys that always have work, those of the first per its weight."""
    device = Device(policy)
    draw = random.Random(seed)
    given = {"a": 0.0, "b": 0.0}
    number = 0
    live = {"a": 0, "b": 0}
    for _ in range(600):
        for key, rows in (("a", rows_a), ("b", rows_b)):
            while live[key] < 3:
                number += 1
                live[key] += 1
                one = sample(
                    f"{key} {number}", full(rows), at=device.now, steps=draw.randint(4, 28)
                )
                device.add(replace(one, key=key, weight=weight if key == "a" else 1.0))
        before, finished = device.now, len(device.done)
        step = device.step()
        assert step is not None
        cost = CostModel(H200)
        parts = {name: cost.alone(full(rows_a if name[0] == "a" else rows_b)) for name in
                 step.sample_ids}  # fmt: skip
        for name, part in parts.items():
            given[name[0]] += (device.now - before) * part / sum(parts.values())
        for name in device.done[finished:]:
            live[name[0]] -= 1
    return given["a"] / weight, given["b"]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([1.0, 2.0, 4.0]),
    st.sampled_from([768, 1536, 4608]),
    st.sampled_from([1536, 8704]),
    st.integers(0, 1000),
)
def test_keys_with_work_get_device_time_by_weight(
    weight: float, rows_a: int, rows_b: int, seed: int
) -> None:
    nobody_is_impatient = Policy(lead_max_s=4.0, patience_s=1e9)
    a, b = shared(nobody_is_impatient, weight, rows_a, rows_b, seed)
    # One that leads by lead_max_s leaves the other behind by that times the ratio of the weights,
    # and the last step overshoots.
    assert a - b <= 4.0 * (1 + weight) + 1.0
    assert b - a <= 4.0 * (1 + 1 / weight) + 1.0


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
@example(163)  # the last job of the other key is out of patience, and runs to its end
def test_whoever_is_out_of_patience_takes_at_most_one_run_beyond_the_share(seed: int) -> None:
    a, b = shared(Policy(lead_max_s=4.0, patience_s=30.0), 4.0, 4608, 8704, seed)
    assert b - a <= 4.0 * (1 + 1 / 4) + 1.0 + 28 * CostModel(H200).alone(full(8704))


def test_a_flood_of_one_key_does_not_hold_up_the_other() -> None:
    device = Device(Policy(lead_max_s=5.0))
    device.add(*(replace(sample(f"flood {i}", SMALL), key="flood") for i in range(500)))
    device.run(steps=200)
    device.add(replace(sample("quiet", LARGE, at=device.now), key="quiet"))
    added = device.now
    while "quiet" not in device.done_at:
        device.step()
    solo = 28 * CostModel(H200).alone(LARGE)
    assert device.done_at["quiet"] - added < 3 * solo + 5.0


def test_a_key_alone_may_use_the_whole_device() -> None:
    device = Device(Policy(lead_max_s=0.0))
    device.add(*(replace(sample(f"{i}", SMALL), key="only") for i in range(10)))
    assert len(device.run()) == 10


def test_time_outside_of_steps_counts_for_the_share_of_its_key() -> None:
    device = Device(Policy(lead_max_s=1.0, ageing=0.0))
    device.add(replace(sample("a", SMALL), key="a"), replace(sample("b", LARGE), key="b"))
    device.scheduler.charge("a", 5.0)
    assert device.step().sample_ids == ("b",)  # type: ignore[union-attr]


# --- cancel ---------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40), st.integers(0, 99))
def test_what_is_cancelled_never_runs_again(orders: list[tuple[int, bool]], seed: int) -> None:
    device = Device()
    draw = random.Random(seed)
    for i in range(10):
        one = sample(f"{i}", full(draw.choice([768, 1536])), steps=draw.randint(1, 6))
        device.add(replace(one, key=draw.choice("ab")))
    gone: set[str] = set()
    for which, while_it_runs in orders:
        step = device.scheduler.schedule(device.now)
        if step is None:
            break
        assert not gone & set(step.sample_ids)
        if while_it_runs:
            which = int(step.sample_ids[0])
        cancelled = device.scheduler.cancel(f"{which}")
        gone.update(each.id for each in cancelled)
        done = device.scheduler.finish(step, step.seconds)
        assert not gone & {each.id for each in done}
        assert f"{which}" not in device.scheduler
    device.run()
    assert not gone & set(device.given)
    assert len(device.scheduler) == 0


def test_cancelling_what_is_unknown_returns_nothing() -> None:
    assert Device().scheduler.cancel("nobody") == ()


def test_a_cancelled_backlog_does_not_push_back_the_next_job_of_its_key() -> None:
    device = Device()
    device.add(replace(sample("other", LARGE), key="other"))
    for i in range(50):
        device.add(replace(sample(f"{i}", LARGE), key="key"))
    for i in range(50):
        device.scheduler.cancel(f"{i}")
    device.add(replace(sample("new", LARGE), key="key"))
    device.add(replace(sample("later", LARGE), key="other"))
    order = [job.id for job in device.scheduler._order]
    assert order == ["other", "new", "later"]


# --- estimates ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([768, 1536, 4608, 8704]), st.integers(1, 28)),
        min_size=1,
        max_size=12,
    )
)
def test_without_arrivals_every_job_ends_when_it_was_told(jobs: list[tuple[int, int]]) -> None:
    device = Device(Policy(ageing=0.0))
    device.add(*(sample(f"{i}", full(rows), steps=n) for i, (rows, n) in enumerate(jobs)))
    told = dict(device.scheduler.forecasts(0.0))
    assert sorted(each.position for each in told.values()) == list(range(len(jobs)))
    total = max(each.finish_at for each in told.values())
    device.run()
    for name, forecast in told.items():
        assert device.done_at[name] == pytest.approx(forecast.finish_at, abs=0.1 * total + 0.3)
    assert device.now == pytest.approx(total, rel=0.1)


def test_an_estimate_shrinks_as_the_job_runs() -> None:
    device = Device()
    device.add(sample("a", LARGE))
    left = []
    while "a" in device.scheduler:
        left.append(device.scheduler.eta("a", device.now))
        device.step()
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(28 * CostModel(H200).alone(LARGE))


def test_an_estimate_for_admission_counts_what_goes_first() -> None:
    device = Device()
    device.add(sample("small", SMALL), sample("large", LARGE))
    cost = CostModel(H200)
    takes = device.scheduler.would_take([sample("next", MEDIUM)], 0.0)
    assert takes == pytest.approx(28 * (cost.alone(SMALL) + cost.alone(MEDIUM)))


# --- when a step goes wrong -----------------------------------------------------------------------


def packed(count: int = 4) -> tuple[Device, Step]:
    device = Device()
    device.add(*(replace(sample(f"{i}", full(768)), job_id="job") for i in range(count)))
    step = device.scheduler.schedule(0.0)
    assert step is not None
    assert len(step.moves) == count
    return device, step


def test_out_of_memory_is_tried_again_with_half_and_remembered() -> None:
    device, step = packed()
    smaller = device.scheduler.shrink(step)
    assert smaller is not None
    assert smaller.load.rows <= step.load.rows // 2
    device.scheduler.finish(smaller, smaller.seconds)
    following = device.step()
    assert following is not None
    assert following.load.rows <= step.load.rows // 2


def test_the_budget_grows_back_after_many_good_steps() -> None:
    device, step = packed()
    device.scheduler.shrink(step)
    for i in range(40):
        device.add(*(replace(sample(f"{i}/{j}", full(768)), job_id=f"{i}") for j in range(4)))
    widths = []
    while found := device.step():
        widths.append(len(found.moves))
    assert max(widths[:RECOVERY_STEPS]) == 2
    assert max(widths) > 2


def test_a_single_sample_that_does_not_fit_has_nothing_smaller() -> None:
    device, step = packed(1)
    assert device.scheduler.shrink(step) is None
    assert device.scheduler.halves(step) == ()


def test_halving_a_step_finds_the_sample_that_spoils_it() -> None:
    device, step = packed(4)
    suspects, culprit = [step], None
    while suspects:
        suspect = suspects.pop()
        if "2" not in suspect.sample_ids:
            device.scheduler.finish(suspect, suspect.seconds)
        elif halves := device.scheduler.halves(suspect):
            suspects.extend(halves)
        else:
            culprit = suspect.sample_ids
    assert culprit == ("2",)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"plan": ()}, "plan"),
        ({"plan": (SKIP, SMALL)}, "plan"),
        ({"plan": (SMALL, Shape(-1, 0))}, "plan"),
        ({"weight": 0.0}, "weight"),
        ({"batch_class": "unheard of"}, "batch_class"),
    ],
)
def test_a_sample_that_cannot_run_is_refused_by_name(change: dict[str, object], field: str) -> None:
    scheduler = Device().scheduler
    with pytest.raises(ValueError, match=field):
        scheduler.add(replace(sample("a"), **change))  # type: ignore[arg-type]
    assert len(scheduler) == 0


def test_a_sample_is_queued_once() -> None:
    device = Device()
    device.add(sample("a"))
    with pytest.raises(ValueError, match="id"):
        device.add(sample("a"))


@pytest.mark.parametrize(
    "bad",
    [{"rows_max": 0}, {"samples_max": 0}, {"ageing": -1.0}, {"quantum_margin": 1.0},
     {"patience_s": float("nan")}],
)  # fmt: skip
def test_a_policy_out_of_bounds_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Policy(**bad)  # type: ignore[arg-type]


def test_nothing_to_do_is_no_step() -> None:
    assert Scheduler({"": CostModel(Coefficients(1, 0, 0, 0))}).schedule(0.0) is None
