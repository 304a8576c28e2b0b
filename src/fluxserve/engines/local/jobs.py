"""What the scheduler remembers of jobs and their samples while they are not done."""

from fluxserve.engines.local.cost import CostModel, Shape
from fluxserve.engines.local.policy import Sample


class Task:
    """A sample on its way through its plan."""

    __slots__ = ("alone_s", "cost", "job", "level", "plan", "remaining_s", "sample", "version")

    def __init__(self, sample: Sample, job: "QueuedJob", cost: CostModel) -> None:
        self.sample, self.job, self.cost = sample, job, cost
        self.plan = sample.plan
        self.level = 0
        self.version = 0  # of the cost model, when the two below were looked up
        self.alone_s = 0.0  # device seconds of the next forward, alone
        self.remaining_s = 0.0  # of all that is left
        self.price()

    @property
    def shape(self) -> Shape:
        return self.plan[self.level]

    @property
    def levels(self) -> int:
        """How far one forward brings it: its level and the extrapolated ones that follow."""
        end = self.level + 1
        while end < len(self.plan) and not self.plan[end].rows:
            end += 1
        return end - self.level

    @property
    def is_done(self) -> bool:
        return self.level >= len(self.plan)

    def forwards(self) -> int:
        """How many forwards are left."""
        return sum(1 for shape in self.plan[self.level :] if shape.rows)

    def price(self) -> None:
        """Look up what the next forward and the rest of the plan cost."""
        rest = self.plan[self.level :]
        self.version = self.cost.version
        price = {shape: self.cost.alone(shape) for shape in set(rest)}
        self.alone_s = price[rest[0]] if rest else 0.0
        self.remaining_s = sum(price[shape] for shape in rest)

    def advance(self, levels: int) -> None:
        """Move on after a forward."""
        before = self.plan[self.level]
        self.level += levels
        if self.is_done:
            self.alone_s = self.remaining_s = 0.0
        elif self.version == self.cost.version and self.plan[self.level] == before:
            self.remaining_s -= self.alone_s
        else:
            self.price()


class QueuedJob:
    """The samples of one prediction that are not done yet."""

    __slots__ = (
        "deadline", "id", "key", "overtaken_s", "patience_s", "priority", "ready", "seq", "solo_s",
        "start_tag", "submitted_at", "tasks",
    )  # fmt: skip

    def __init__(self, sample: Sample, *, seq: int, start_tag: float, ready: bool) -> None:
        self.id, self.key, self.priority = sample.job_id, sample.key, sample.priority
        self.submitted_at, self.deadline = sample.submitted_at, sample.deadline
        self.seq = seq  # in the order of arrival
        self.start_tag = start_tag  # its place in the reference order
        self.ready = ready
        self.tasks: list[Task] = []
        self.solo_s = 0.0  # device seconds of all its samples, one after the other
        self.overtaken_s = 0.0  # device seconds that went to jobs behind it while it waited
        self.patience_s = 0.0  # how much of that it bears

    @property
    def remaining_s(self) -> float:
        """Device seconds left, one sample after the other, at today's prices."""
        total = 0.0
        for task in self.tasks:
            if task.version != task.cost.version:
                task.price()
            total += task.remaining_s
        return total
