"""What the simulation promises about the scheduler, on fewer requests than the published table."""

from bench.scheduling import H200, compare, overhead
from fluxserve.engines.local.cost import full
from fluxserve.engines.local.policy import Policy


def test_at_load_085_small_requests_pass_and_nobody_waits_beyond_the_promise() -> None:
    found = compare(1200, 2, 0.85, Policy())
    ours, fifo = found["fluxserve"], found["fifo"]
    assert ours.slowdown <= 0.55 * fifo.slowdown  # 0.48 on the 9,000 of the table
    assert ours.small_p95_s < fifo.small_p95_s / 10
    assert ours.mean_s < min(other.mean_s for name, other in found.items() if name != "fluxserve")
    assert ours.beyond == 0


def test_a_turn_of_the_scheduler_costs_less_than_two_percent_of_a_step() -> None:
    step_s = H200.alone(full(1536))
    median_s, _ = overhead(8)
    assert median_s < 0.02 * step_s
