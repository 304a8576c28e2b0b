"""Turns on the device, cores of the machine, which model a folder is."""

import json
import shutil
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import pytest

from fluxserve.core.cards import EMBEDDED_ID
from fluxserve.core.errors import StartupError
from fluxserve.engines.local.cores import physical_cores
from fluxserve.engines.local.identify import DEV_ID, KONTEXT_ID, SCHNELL_ID, card_id_of
from fluxserve.engines.local.turns import Turns
from fluxserve.flux.folder import embedded_folder


def test_turns_are_taken_in_the_order_of_asking() -> None:
    turns, order = Turns(), SimpleQueue[int]()
    threads = []
    with turns:
        for number in range(3):
            asked = turns.waiting

            def work(number: int = number) -> None:
                with turns:
                    order.put(number)

            threads.append(Thread(target=work))
            threads[-1].start()
            while turns.waiting == asked:
                pass
    for thread in threads:
        thread.join(10)
    assert [order.get_nowait() for _ in range(3)] == [0, 1, 2]


def test_shared_turns_hold_nobody_back() -> None:
    turns, inside = Turns(shared=True), Event()

    def work() -> None:
        with turns:
            inside.set()

    with turns:
        thread = Thread(target=work)
        thread.start()
        assert inside.wait(10)
        thread.join(10)


def test_a_turn_is_busy_until_it_ends_even_in_an_error() -> None:
    turns = Turns()
    assert turns.busy_s == 0.0
    turns.__enter__()
    assert turns.busy_s > 0.0
    turns.__exit__(ValueError, ValueError(), None)
    assert turns.busy_s == 0.0


def test_hyper_threads_are_not_counted_as_cores(tmp_path: Path) -> None:
    for cpu in range(256):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-255\n")
    assert physical_cores(tmp_path, tmp_path / "none") == 1


def test_a_quota_of_the_container_bounds_the_cores(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert physical_cores(quota=quota) == 1
    quota.write_text("max 100000\n")
    assert physical_cores(quota=quota) >= 1


@pytest.mark.parametrize(
    ("pipeline", "guidance", "card"),
    [
        ("FluxKontextPipeline", True, KONTEXT_ID),
        ("FluxPipeline", True, DEV_ID),
        ("FluxPipeline", False, SCHNELL_ID),
    ],
)
def test_a_folder_is_known_by_its_configs(
    tmp_path: Path, pipeline: str, guidance: bool, card: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_folder(), folder)
    for path, name, value in (
        (folder / "model_index.json", "_class_name", pipeline),
        (folder / "transformer" / "config.json", "guidance_embeds", guidance),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert card_id_of(str(folder)) == card


def test_the_package_model_is_known() -> None:
    assert card_id_of(embedded_folder()) == EMBEDDED_ID


def test_a_folder_that_is_no_model_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"engine\.model_dir: .*/model_index\.json: missing"):
        card_id_of(tmp_path)
