"""Which samples share the next forward. Plain data in and out: no torch, no threads, no clock.

    add --> waiting --> schedule() -> Step --> the runner's forward --> finish() -> done samples
               ^                                                           |
               '-----------------------------------------------------------'

A turn picks the best job and fills its forward up with others:

1. *Nobody starves.* All jobs stand in one reference order: first come first served, with a fair
   share of the device for every key. Device time given to jobs behind a waiting one is counted
   against it; once that reaches its `patience`, only it and those before it in that order may run.
   So a job finishes at most its patience (and one step) later than in the reference order.
2. *Fair shares.* Of a key that is more than `lead_max_s` device-seconds per weight ahead of its
   share nothing runs while another key has work; a job out of patience runs all the same.
3. *Order.* Higher priority first; then a deadline whose slack is below the remaining time, earliest
   first; then the least remaining device time, divided by (1 + ageing * age / solo time).
4. *Fill.* Others of the same batch class join while the tokens fit the budget and what sharing
   saves for those behind outweighs what it costs those already in: on a device that one image
   fills, packing is no gift. A large image runs alone, small ones run together when many wait.
"""

from collections.abc import Collection, Mapping, Sequence

from fluxserve.engines.local.cost import CostModel, Load, Shape
from fluxserve.engines.local.fairness import Shares
from fluxserve.engines.local.jobs import QueuedJob, Task
from fluxserve.engines.local.policy import Forecast, Move, Policy, Sample, Step

# A class of priority is this many times as patient as the next higher one.
PATIENCE_FACTOR = 4.0
# That many jobs in a row that do not fit into a forward end the search for company.
FILL_MISSES_MAX = 8
# After running out of memory the budget grows back by a quarter once in that many good steps.
RECOVERY_STEPS = 200


class Scheduler:
    """Samples join and leave between steps. One owner; not safe to share between threads."""

    def __init__(self, costs: Mapping[str, CostModel], policy: Policy | None = None) -> None:
        """`costs` holds the cost model of every batch class; models may be added to it later."""
        self.policy = policy or Policy()
        self._costs = costs
        self._jobs: dict[str, QueuedJob] = {}
        self._order: list[QueuedJob] = []  # the reference order
        self._tasks: dict[str, Task] = {}
        self._shares = Shares()
        self._arrivals = self._steps = 0
        self._kept: frozenset[str] = frozenset()  # jobs of the last step, while their quantum lasts
        self._kept_steps = 0
        self._budgets: dict[str, tuple[int, int]] = {}  # class -> rows that fit, good steps since
        self._forecast: dict[str, Forecast] | None = None

    # --- jobs come and go -----------------------------------------------------------------------

    def add(self, sample: Sample, *, ready: bool = True) -> None:
        """Queue a sample; further samples of a job join it.

        With `ready` false the job waits (for its encoding) until `make_ready`. Raises ValueError
        for a known sample id, a plan that does not start with a forward, a weight that is not
        positive, or a class without a cost model.
        """
        if sample.id in self._tasks:
            raise ValueError(f"id: sample {sample.id} is queued already")
        if sample.weight <= 0:
            raise ValueError(f"weight: more than 0, not {sample.weight}")
        if sample.batch_class not in self._costs:
            raise ValueError(f"batch_class: no cost model for {sample.batch_class!r}")
        _check_plan(sample.plan)
        job = self._jobs.get(sample.job_id) or self._enter(sample, ready)
        task = Task(sample, job, self._costs[sample.batch_class])
        job.tasks.append(task)
        job.solo_s += task.remaining_s
        self._shares.ask(job.key, task.remaining_s)
        self._tasks[sample.id] = task
        self._forecast = None

    def make_ready(self, job_id: str) -> None:
        """The job may run from now on; an unknown one (cancelled meanwhile) is ignored."""
        if job_id in self._jobs:
            self._jobs[job_id].ready = True
            self._forecast = None

    def replan(self, sample_id: str, plan: tuple[Shape, ...]) -> None:
        """Replace the steps that a sample still has to go; KeyError when it is not queued."""
        _check_plan(plan)
        task = self._tasks[sample_id]
        before = task.remaining_s
        task.plan = task.plan[: task.level] + plan
        task.price()
        self._shares.ask(task.job.key, task.remaining_s - before)
        self._forecast = None

    def cancel(self, job_id: str) -> tuple[Sample, ...]:
        """Take a job out, running or not; returns its unfinished samples, none when unknown."""
        job = self._jobs.get(job_id)
        if job is None:
            return ()
        for task in job.tasks:
            self._shares.ask(job.key, -task.remaining_s)
            del self._tasks[task.sample.id]
        self._leave(job)
        return tuple(task.sample for task in job.tasks)

    def __len__(self) -> int:
        """Jobs that are not done."""
        return len(self._jobs)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    # --- a turn -----------------------------------------------------------------------------------

    def schedule(self, now: float) -> Step | None:
        """The next forward, or None when nothing can run. Nothing changes until `finish`."""
        ranked = self._ranked(self._eligible(), now)
        return self._step(self._fill(ranked, now)) if ranked else None

    def finish(self, step: Step, measured_s: float) -> tuple[Sample, ...]:
        """The step took `measured_s` seconds: move its samples on; returns those now done.

        Samples that were cancelled meanwhile are left out. Raises ValueError where it took no time.
        """
        self._costs[step.batch_class].observe(step.load, measured_s)
        moved = [(self._tasks[m.sample_id], m) for m in step.moves if m.sample_id in self._tasks]
        alone_s = sum(task.alone_s for task, _ in moved)
        served: dict[str, float] = {}
        done = []
        for task, move in moved:
            job, before = task.job, task.remaining_s
            served[job.id] = served.get(job.id, 0.0) + measured_s * task.alone_s / alone_s
            task.advance(move.levels)
            self._shares.ask(job.key, task.remaining_s - before)
            if task.is_done:
                done.append(task)
        self._account(served)
        self._keep(frozenset(served))
        for task in done:
            del self._tasks[task.sample.id]
            task.job.tasks.remove(task)
            if not task.job.tasks:
                self._leave(task.job)
        self._recover(step.batch_class)
        self._steps += 1
        self._forecast = None
        return tuple(task.sample for task in done)

    def charge(self, job_id: str, measured_s: float) -> None:
        """Device time spent on a queued job outside of steps: encoding, previews."""
        if job_id in self._jobs:
            self._account({job_id: measured_s})

    # --- when a step goes wrong -------------------------------------------------------------------

    def shrink(self, step: Step) -> Step | None:
        """The step ran out of memory: a smaller one to try instead, from the same latents.

        Halves what the class may pack from now on; it grows back slowly. None when the step was a
        single sample, which then does not fit at all.
        """
        tasks = self._present(step)
        if len(tasks) < 2:
            return None
        half = step.load.rows // 2
        self._budgets[step.batch_class] = (half, 0)
        kept, rows = tasks[:1], tasks[0].shape.rows
        for task in tasks[1:-1]:
            if rows + task.shape.rows <= half:
                kept.append(task)
                rows += task.shape.rows
        return self._step(kept)

    def halves(self, step: Step) -> tuple[Step, ...]:
        """The step split in two, to find the sample that spoils it; empty for a single one."""
        tasks = self._present(step)
        middle = len(tasks) // 2
        return (self._step(tasks[:middle]), self._step(tasks[middle:])) if middle else ()

    # --- what callers want to know ----------------------------------------------------------------

    def forecasts(self, now: float) -> Mapping[str, Forecast]:
        """Position and finish of every job, by id, if nothing else arrives. Kept until a change."""
        if self._forecast is None:
            self._forecast = self._foresee(now)
        return self._forecast

    def eta(self, job_id: str, now: float) -> float:
        """Seconds from `now` until the job's last step is done; KeyError when it is not queued."""
        return max(0.0, self.forecasts(now)[job_id].finish_at - now)

    def queue_position(self, job_id: str, now: float) -> int:
        """Jobs that finish before it; KeyError when it is not queued."""
        return self.forecasts(now)[job_id].position

    def would_take(self, samples: Sequence[Sample], now: float) -> float:
        """Seconds until a job of these samples would finish were it added now; for admission."""
        remaining = sum(
            self._costs[sample.batch_class].alone(shape)
            for sample in samples
            for shape in sample.plan
        )
        rank = (-samples[0].priority, 1, remaining)
        before = (job for job in self._order if self._rank(job, now)[:3] <= rank)
        return remaining + sum(job.remaining_s for job in before)

    def step_s(self, job_id: str) -> float:
        """Seconds of a job's next forward with one sample alone; 0.0 when it is not queued."""
        job = self._jobs.get(job_id)
        return 0.0 if job is None else max(task.alone_s for task in job.tasks)

    def overtaken(self, job_id: str) -> tuple[float, float]:
        """Device seconds that jobs behind it were given while it waited, and its patience."""
        job = self._jobs[job_id]
        return job.overtaken_s, job.patience_s

    # --- the rules --------------------------------------------------------------------------------

    def _eligible(self) -> list[QueuedJob]:
        """Rules 1 and 2: whom nobody's patience and no key's lead keeps back."""
        jobs = [job for job in self._order if job.ready]
        for i, job in enumerate(jobs):
            if job.overtaken_s >= job.patience_s:
                del jobs[i + 1 :]
                break
        leads = {key: self._shares.lead(key) for key in {job.key for job in jobs}}
        if len(leads) > 1:
            limit = max(self.policy.lead_max_s, min(leads.values()))
            jobs = [job for job in jobs if leads[job.key] <= limit]
        return jobs

    def _rank(self, job: QueuedJob, now: float) -> tuple[int, int, float, int]:
        """Rule 3, and the running ones a little ahead while their quantum lasts; least first."""
        remaining = job.remaining_s
        if job.deadline is not None:
            left = job.deadline - now
            # Twice that, and there is time; less, and it is lost: then it should delay nobody.
            if 0.9 * remaining <= left < 2 * remaining:
                return -job.priority, 0, job.deadline, job.seq
        age = max(0.0, now - job.submitted_at)
        score = remaining / (1.0 + self.policy.ageing * age / job.solo_s)
        if job.id in self._kept:
            score *= 1.0 - self.policy.quantum_margin
        return -job.priority, 1, score, job.seq

    def _ranked(self, jobs: Collection[QueuedJob], now: float) -> list[QueuedJob]:
        return sorted(jobs, key=lambda job: self._rank(job, now))

    def _fill(
        self, ranked: Sequence[QueuedJob], now: float, done: Collection[Task] = ()
    ) -> list[Task]:
        """Rule 4: the first job's first sample, and company for it."""
        first = next(task for task in ranked[0].tasks if task not in done)
        chosen, load = [first], Load().plus(first.shape)
        if first.sample.alone or not self._rank(ranked[0], now)[1]:
            return chosen
        cost, batch_class = first.cost, first.sample.batch_class
        budget = self._budgets.get(batch_class, (self.policy.rows_max, 0))[0]
        seconds, misses = cost.seconds(load), 0
        for place, job in enumerate(ranked):
            for task in job.tasks:
                if task is first or task in done:
                    continue
                if task.sample.batch_class != batch_class or task.sample.alone:
                    continue
                wider = load.plus(task.shape)
                together = cost.seconds(wider)
                delay = together - seconds
                saved = task.alone_s - delay
                # All jobs before this one end later by the delay; it and those behind, sooner.
                is_worth = saved * (len(ranked) - place) >= delay * place
                gain = saved / together
                if wider.rows > budget or gain < self.policy.gain_min or not is_worth:
                    misses += 1
                    continue
                chosen.append(task)
                load, seconds = wider, together
                if len(chosen) >= self.policy.samples_max:
                    return chosen
            if misses >= FILL_MISSES_MAX:
                break
        return chosen

    # --- bookkeeping ------------------------------------------------------------------------------

    def _enter(self, sample: Sample, ready: bool) -> QueuedJob:
        """A new job takes its place in the reference order, and its patience from those before."""
        tag = self._shares.enter(sample.key, sample.weight)
        self._arrivals += 1
        job = QueuedJob(sample, seq=self._arrivals, start_tag=tag, ready=ready)
        self._jobs[job.id] = job
        before = sum(other.remaining_s for other in self._order if other.start_tag <= tag)
        self._order.append(job)
        self._order.sort(key=lambda other: (other.start_tag, other.seq))
        factor = PATIENCE_FACTOR**-job.priority
        job.patience_s = self.policy.patience_s + self.policy.patience_ratio * factor * before
        return job

    def _leave(self, job: QueuedJob) -> None:
        del self._jobs[job.id]
        self._order.remove(job)
        self._shares.leave(job.key)
        self._kept -= {job.id}
        self._forecast = None

    def _account(self, served: Mapping[str, float]) -> None:
        """Device seconds went to these jobs: count them for their keys and those they overtook."""
        keys: dict[str, float] = {}
        behind = 0.0
        for job in reversed(self._order):
            if job.ready:
                job.overtaken_s += behind
            if job.id in served:
                behind += served[job.id]
                keys[job.key] = keys.get(job.key, 0.0) + served[job.id]
        self._shares.serve(keys)

    def _keep(self, running: frozenset[str]) -> None:
        """The quantum: how long the jobs of the last step have been running together."""
        self._kept_steps = self._kept_steps + 1 if running & self._kept else 1
        self._kept = running if self._kept_steps < self.policy.quantum_steps else frozenset()

    def _recover(self, batch_class: str) -> None:
        """A class that ran out of memory may slowly pack more again."""
        if batch_class not in self._budgets:
            return
        rows, good = self._budgets[batch_class]
        rows, good = (rows * 5 // 4, 0) if good + 1 >= RECOVERY_STEPS else (rows, good + 1)
        self._budgets[batch_class] = (rows, good)
        if rows >= self.policy.rows_max:
            del self._budgets[batch_class]

    def _present(self, step: Step) -> list[Task]:
        return [self._tasks[id_] for id_ in step.sample_ids if id_ in self._tasks]

    def _step(self, tasks: Sequence[Task]) -> Step:
        load = Load()
        for task in tasks:
            load = load.plus(task.shape)
        return Step(
            number=self._steps + 1,
            batch_class=tasks[0].sample.batch_class,
            moves=tuple(Move(task.sample.id, task.levels) for task in tasks),
            load=load,
            seconds=tasks[0].cost.seconds(load),
        )

    def _foresee(self, now: float) -> dict[str, Forecast]:
        """Run the queue to its end on paper: today's order, each batch until one of it is done."""
        first = self._eligible()
        known = {job.id for job in first}
        queue = self._ranked(first, now)
        queue += self._ranked([job for job in self._order if job.id not in known], now)
        left = {task: task.forwards() for job in queue for task in job.tasks}
        done: set[Task] = set()
        result: dict[str, Forecast] = {}
        at = now
        while queue:
            batch = self._fill(queue, now, done)
            rounds = min(left[task] for task in batch)
            seconds = batch[0].cost.seconds(self._step(batch).load)
            # Later steps of a plan may cost more or less than the next one.
            plain = sum(task.alone_s * task.forwards() for task in batch)
            at += rounds * seconds * sum(task.remaining_s for task in batch) / plain
            for task in batch:
                left[task] -= rounds
                if not left[task]:
                    done.add(task)
            for job in [job for job in queue if all(task in done for task in job.tasks)]:
                result[job.id] = Forecast(len(result), at)
                queue.remove(job)
        return result


def _check_plan(plan: Sequence[Shape]) -> None:
    if not plan or not plan[0].rows:
        raise ValueError("plan: the first step needs a forward")
    if any(shape.rows < 0 or shape.keys < 0 for shape in plan):
        raise ValueError("plan: no shape has less than 0 rows or keys")
