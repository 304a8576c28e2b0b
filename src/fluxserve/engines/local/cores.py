"""How many CPU cores this process may really use at once."""

from __future__ import annotations

import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores(cpus: Path = CPUS, quota: Path = QUOTA) -> int:
    """Cores without their hyper-threads, no more than the container's quota; at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(_count())
    siblings = {_read(cpus / f"cpu{cpu}/topology/thread_siblings_list") or cpu for cpu in allowed}
    return max(1, min(len(siblings), _quota(quota) or len(siblings)))


def _count() -> int:
    return os.cpu_count() or 1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _quota(path: Path) -> int | None:
    """Whole cores' worth of time that the control group grants, if it is limited."""
    allowed, _, period = _read(path).partition(" ")
    if not allowed.isdigit() or not period.isdigit() or not int(period):
        return None
    return max(1, int(allowed) // int(period))
