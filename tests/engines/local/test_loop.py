"""The loop with a scripted device: what fails fails alone, what is cancelled stops."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from fluxserve.core.errors import EngineError
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import JSON
from fluxserve.engines.local.cost import Coefficients, CostModel, full
from fluxserve.engines.local.loop import CANCELED, Loop
from fluxserve.engines.local.plan import Plan
from fluxserve.engines.local.policy import Policy
from fluxserve.engines.local.run import DeviceLost, NoRoom, Spoiled
from fluxserve.engines.local.scheduler import Scheduler
from fluxserve.engines.local.wire import Ended, Glimpse, Made, Moved, Note, Order, Up
from fluxserve.flux.skips import skip_map
from tests.engines.local.test_plan import TEXT

PICTURE = EncodedImage(data=b"picture", mime="image/png", width=8, height=8)


@dataclass(slots=True, eq=False)
class Blank:
    """A sample without pixels."""

    order: Order
    seed: int
    step: int = 0


@dataclass(slots=True)
class Device:
    """Does what prompts say: nan, crash, lost, hungry (does not fit beside others), huge."""

    batch_class: str = "scripted"
    forwards: list[list[str]] = field(default_factory=list)
    room: int = 100
    is_flaky: bool = False
    released: list[str] = field(default_factory=list)
    rooms_made: int = 0

    def plan(self, order: Order) -> Plan:
        if order.prompt == "impossible":
            raise EngineError("this cannot be made", field="prompt")
        return Plan(
            width=8,
            height=8,
            out_width=8,
            out_height=8,
            references=(),
            guidance=1.0,
            num_steps=order.num_steps,
            first_step=0,
            shape=full(10),
            approximations=order.approximations,
            notes=("noted",) if order.prompt == "note" else (),
        )

    def encode(
        self, order: Order, files: Sequence[bytes], plan: Plan, note: Callable[[str], None]
    ) -> Sequence[Blank]:
        if order.prompt == "unreadable":
            raise EngineError("images: cannot be read", field="images")
        return [Blank(order, order.seed + index) for index in order.indexes]

    def advance(self, samples: Sequence[Blank]) -> None:
        self.forwards.append([sample.order.id for sample in samples])
        prompts = [sample.order.prompt for sample in samples]
        if len(samples) > self.room or "huge" in prompts:
            raise NoRoom
        if "lost" in prompts:
            raise DeviceLost
        if self.is_flaky:
            self.is_flaky = False
            raise RuntimeError("once")
        if "crash" in prompts:
            raise RuntimeError("kernel failed")
        if "nan" in prompts:
            raise Spoiled([at for at, prompt in enumerate(prompts) if prompt == "nan"])
        for sample in samples:
            sample.step += 1
            later = [*skip_map(sample.order.num_steps)[sample.step :], True]
            if sample.order.approximations:
                sample.step += later.index(True)

    def glimpse(self, sample: Blank, plan: Plan) -> Callable[[], EncodedImage] | None:
        return lambda: PICTURE

    def decode(
        self, order: Order, files: Sequence[bytes], plan: Plan, sample: Blank
    ) -> EncodedImage:
        assert sample.step == order.num_steps
        if order.prompt == "undecodable":
            raise NoRoom
        if order.prompt == "too bright":
            raise Spoiled([0])
        return PICTURE

    def release(self, order_id: str) -> None:
        self.released.append(order_id)

    def make_room(self) -> None:
        self.rooms_made += 1

    def facts(self) -> Mapping[str, JSON]:
        return {"device": "scripted"}


class Bench:
    """A loop on a scripted device, a clock that moves a second a look, lanes that work at once."""

    def __init__(self) -> None:
        self.device = Device()
        self.said: list[Up] = []
        self.kept: list[tuple[str, int]] = []
        self.held: list[Callable[[], None]] = []  # work of a lane that was told to wait
        self.is_holding = False
        self.spare = 0  # pieces of work for when there is nothing else to do
        self.rested: list[tuple[str, ...]] = []  # who was there when one was done
        self._now = 0.0
        costs = {"scripted": CostModel(Coefficients(1.0, 0.01, 0.0001, 0.0))}
        self.loop = Loop(
            worker=self.device,
            scheduler=Scheduler(costs, Policy(gain_min=0.0)),
            encoding=self,
            decoding=self,
            send=lambda message, blobs: self.said.append(message),
            keep=self._keep,
            clock=self._clock,
            spare=self._rest,
        )

    def give(self, work: Callable[[], None]) -> None:
        if self.is_holding:
            self.held.append(work)
        else:
            work()

    def _keep(self, job_id: str, index: int, image: EncodedImage) -> str:
        self.kept.append((job_id, index))
        return f"{job_id}-{index}"

    def _rest(self) -> bool:
        if not self.spare:
            return False
        self.spare -= 1
        self.rested.append(tuple(self.loop._runs))
        return True

    def _clock(self) -> float:
        self._now += 0.01
        return self._now

    def order(self, id_: str, prompt: str = "fine", **changes: object) -> None:
        base = replace(TEXT, id=id_, prompt=prompt, num_steps=3, indexes=(0,))
        self.loop.submit(replace(base, **changes), ())  # type: ignore[arg-type]

    def finish(self) -> None:
        """Turn until nothing is left to do, counting on the device to make progress."""
        for _ in range(200):
            if not self.loop.turn(wait=False) and not self.loop.turn(wait=False):
                return
        raise AssertionError("the loop does not come to an end")

    def ended(self) -> dict[str, str]:
        return {m.id: m.code for m in self.said if isinstance(m, Ended)}

    def of(self, kind: type[Up]) -> list[Up]:
        return [message for message in self.said if isinstance(message, kind)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_jobs_share_forwards_and_all_are_made(bench: Bench) -> None:
    for at in range(3):
        bench.order(f"j{at}")
    bench.finish()
    assert bench.ended() == {"j0": "", "j1": "", "j2": ""}
    assert bench.device.forwards == [["j0", "j1", "j2"]] * 3
    assert sorted(bench.kept) == [("j0", 0), ("j1", 0), ("j2", 0)]


def test_every_output_of_a_job_has_a_seed_of_its_own(bench: Bench) -> None:
    bench.order("j", indexes=(1, 3), seed=2**32 - 2)
    bench.finish()
    made = [m for m in bench.said if isinstance(m, Made)]
    assert {(m.index, m.seed, m.key) for m in made} == {(1, 2**32 - 1, "j-1"), (3, 1, "j-3")}


def test_a_report_tells_where_the_time_went(bench: Bench) -> None:
    bench.order("j", indexes=(0, 1))
    bench.finish()
    (ended,) = (m for m in bench.said if isinstance(m, Ended))
    assert ended.metrics["steps"] == 3
    assert ended.metrics["model_calls"] == 6
    assert ended.metrics["batch_mean"] == 2.0
    assert ended.metrics["device"] == "scripted"
    for name in ("queue_s", "encode_s", "denoise_s", "decode_s", "engine_s"):
        assert ended.metrics[name] >= 0


def test_a_job_that_ended_in_any_way_is_released_once(bench: Bench) -> None:
    bench.order("good")
    bench.order("bad", "nan")
    bench.order("gone", num_steps=50)
    bench.loop.cancel("gone")
    bench.finish()
    assert sorted(bench.device.released) == ["bad", "gone", "good"]


def test_extrapolated_steps_cost_no_forward(bench: Bench) -> None:
    bench.order("j0", num_steps=28, approximations=("skip",))
    bench.finish()
    (ended,) = (m for m in bench.said if isinstance(m, Ended))
    assert ended.metrics["model_calls"] == len(bench.device.forwards) == 13
    assert ended.metrics["steps"] == 28
    assert ended.metrics["approximations"] == ["skip"]
    assert [m for m in bench.said if isinstance(m, Moved)][-1].step == 28


@pytest.mark.parametrize("prompt", ["nan", "too bright"])
def test_values_that_are_no_numbers_are_told_wherever_they_come_up(
    bench: Bench, prompt: str
) -> None:
    bench.order("j0", prompt)
    bench.finish()
    (ended,) = (m for m in bench.said if isinstance(m, Ended))
    assert (ended.code, ended.message) == (
        "engine_failed",
        "the picture came to values that are no numbers",
    )


@pytest.mark.parametrize("prompt", ["nan", "crash"])
def test_a_poisoned_request_fails_alone(bench: Bench, prompt: str) -> None:
    for at, word in enumerate(["fine", prompt, "fine", "fine"]):
        bench.order(f"j{at}", word)
    bench.finish()
    assert bench.ended() == {"j0": "", "j1": "engine_failed", "j2": "", "j3": ""}


def test_a_failure_that_does_not_come_back_fails_nobody(bench: Bench) -> None:
    bench.device.is_flaky = True
    bench.order("j0")
    bench.finish()
    assert bench.ended() == {"j0": ""}
    assert len(bench.device.forwards) == 4


def test_a_step_that_does_not_fit_is_tried_with_fewer(bench: Bench) -> None:
    bench.device.room = 2
    for at in range(8):
        bench.order(f"j{at}")
    bench.finish()
    assert set(bench.ended().values()) == {""}
    assert len(bench.ended()) == 8


def test_a_request_that_never_fits_fails_alone(bench: Bench) -> None:
    for at, word in enumerate(["fine", "huge", "fine"]):
        bench.order(f"j{at}", word)
    bench.finish()
    assert bench.ended() == {"j0": "", "j1": "out_of_memory", "j2": ""}


def test_a_lost_device_ends_the_process(bench: Bench) -> None:
    bench.order("j0", "lost")
    with pytest.raises(DeviceLost):
        bench.finish()


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("impossible", "engine_failed"),
        ("unreadable", "engine_failed"),
        ("undecodable", "out_of_memory"),
    ],
)
def test_a_failure_beside_the_steps_is_told(bench: Bench, prompt: str, code: str) -> None:
    bench.order("j0", prompt)
    bench.order("j1")
    bench.finish()
    assert bench.ended() == {"j0": code, "j1": ""}


def test_a_cancelled_job_takes_no_further_step(bench: Bench) -> None:
    bench.order("j0", num_steps=50)
    bench.order("j1")
    bench.loop.turn(wait=False)
    bench.loop.turn(wait=False)
    bench.loop.cancel("j0")
    before = sum("j0" in forward for forward in bench.device.forwards)
    bench.finish()
    assert sum("j0" in forward for forward in bench.device.forwards) == before
    assert bench.ended() == {"j0": CANCELED, "j1": ""}


def test_cancelling_an_unknown_job_is_answered(bench: Bench) -> None:
    bench.loop.cancel("nobody")
    bench.finish()
    assert bench.ended() == {"nobody": CANCELED}


def test_a_cancelled_job_ends_only_when_no_lane_works_for_it(bench: Bench) -> None:
    bench.is_holding = True
    bench.order("j0")
    bench.finish()
    bench.loop.cancel("j0")
    bench.finish()
    assert bench.ended() == {}
    (work,) = bench.held
    work()
    bench.finish()
    assert bench.ended() == {"j0": CANCELED}
    assert bench.device.forwards == []


def test_lanes_that_are_at_work_hold_up_no_steps_of_others(bench: Bench) -> None:
    bench.is_holding = True
    bench.order("slow")
    bench.finish()
    (encoding,) = bench.held
    bench.held.clear()
    bench.is_holding = False
    bench.order("during the encoding")
    bench.finish()
    assert bench.ended() == {"during the encoding": ""}
    encoding()
    bench.is_holding = True  # now of its decoding
    bench.finish()
    (decoding,) = bench.held
    bench.is_holding = False
    bench.order("during the decoding")
    bench.finish()
    assert list(bench.ended()) == ["during the encoding", "during the decoding"]
    decoding()
    bench.finish()
    assert bench.ended()["slow"] == ""


def test_progress_ends_at_the_last_step(bench: Bench) -> None:
    bench.order("j0", num_steps=30)
    bench.finish()
    moved = [m for m in bench.said if isinstance(m, Moved)]
    assert moved[-1].step == moved[-1].total == 30
    assert [m.step for m in moved] == sorted(m.step for m in moved)


def test_a_job_in_the_queue_hears_its_place(bench: Bench) -> None:
    bench.order("j0", alone=True, num_steps=50)
    bench.order("j1", alone=True, num_steps=60)
    bench.finish()
    places = [m.position for m in bench.said if isinstance(m, Moved) and m.id == "j1"]
    assert places[0] == 2
    assert places[-1] == 0


def test_previews_come_at_the_steps_asked_for_but_not_at_the_last(bench: Bench) -> None:
    bench.order("j0", num_steps=7, preview_steps=3)
    bench.finish()
    glimpses = [m for m in bench.said if isinstance(m, Glimpse)]
    assert [m.step for m in glimpses] == [3, 6]


def test_a_step_of_several_levels_jumps_over_no_preview(bench: Bench) -> None:
    bench.order("j0", num_steps=28, preview_steps=5, approximations=("skip",))
    bench.finish()
    glimpses = [m for m in bench.said if isinstance(m, Glimpse)]
    # Levels after each forward: 1, 2, 4, 7, 10, .. 25, 26, 27, 28.
    assert [m.step for m in glimpses] == [7, 10, 16, 22, 25]


def test_every_output_has_its_previews_at_the_steps_it_has_done(bench: Bench) -> None:
    bench.order("j0", num_steps=8, preview_steps=3, approximations=("skip",), indexes=(0, 1))
    bench.finish()
    glimpses = [(m.index, m.step) for m in bench.said if isinstance(m, Glimpse)]
    assert sorted(glimpses) == [(0, 4), (0, 6), (1, 4), (1, 6)]


def test_the_notes_of_a_plan_reach_the_log(bench: Bench) -> None:
    bench.order("j0", "note")
    bench.finish()
    assert [m.text for m in bench.said if isinstance(m, Note)] == ["noted"]


def test_spare_work_is_done_while_there_is_no_job_and_never_beside_one(bench: Bench) -> None:
    bench.spare = 9
    assert not bench.loop.turn(wait=True)
    assert bench.spare == 8
    bench.is_holding = True
    bench.order("j")
    bench.loop.turn(wait=False)  # it is in the encoding lane now
    bench.held.pop()()
    while bench.held or not bench.ended():
        bench.loop.turn(wait=True)
        for work in bench.held:
            work()
        bench.held.clear()
    while bench.spare:
        bench.loop.turn(wait=True)
    assert bench.rested == [()] * 9
    bench.loop.stop()
    bench.loop.run()
