"""How much memory a container with a limit has left."""

from pathlib import Path

from fluxserve.engines.local.memory import GIB, available_bytes

STAT = """anon {anon}
file {file}
shmem {shmem}
inactive_anon 0
active_anon 0
inactive_file {inactive}
active_file {active}
slab_reclaimable 12345
"""


def container(folder: Path, *, limit: int, used: int, stat: str | None = None) -> int:
    """Free bytes of a container on a machine with 128 GiB."""
    (folder / "meminfo").write_text(f"MemAvailable: {128 * GIB // 1024} kB\n")
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    if stat is not None:
        (folder / "memory.stat").write_text(stat)
    return available_bytes(folder / "meminfo", folder)


def test_weights_that_were_read_from_disk_take_no_room_from_themselves(tmp_path: Path) -> None:
    stat = STAT.format(
        anon=2 * GIB, file=37 * GIB, shmem=1 * GIB, inactive=30 * GIB, active=6 * GIB
    )
    free = container(tmp_path, limit=40 * GIB, used=39 * GIB, stat=stat)
    assert free == 37 * GIB  # what programs use and what lies in shared memory stays used


def test_without_the_figures_of_a_container_all_that_is_used_counts(tmp_path: Path) -> None:
    assert container(tmp_path, limit=40 * GIB, used=39 * GIB) == GIB


def test_no_more_is_free_than_the_container_may_have(tmp_path: Path) -> None:
    stat = STAT.format(anon=0, file=9, shmem=0, inactive=2 * GIB, active=0)
    assert container(tmp_path, limit=40 * GIB, used=GIB, stat=stat) == 40 * GIB
