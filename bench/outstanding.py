"""What do ten thousand jobs that a provider is working on cost, and do they survive a kill?

A provider accepts everything and finishes nothing until it is told to. Measured of our server:
memory, asyncio tasks and processor time with none and with all of them waiting; polls a second
that the provider sees. Then the server is killed (SIGKILL) and started again, the provider lets
the jobs end, and every prediction must have succeeded with one submission each.

    python -m bench.outstanding                # 10,000, some ten minutes
    python -m bench.outstanding --jobs 1000
"""

import argparse
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import chaos
from bench.chaos import API, MODEL, Plan, Server
from bench.upstream import cpu_s
from tests.fakes.replicate import FakeReplicate
from tests.fakes.script import Act, Script
from tests.fakes.server import serving

NEVER_S = 1e9
CLIENTS = 16
# SIGUSR2 makes the server write down how many asyncio tasks it has.
COUNTING = (
    "import asyncio, os, pathlib, signal; "
    "note = lambda *_: pathlib.Path(os.environ['TASKS_NOTE']).write_text("
    "str(len(asyncio.all_tasks(asyncio.get_running_loop())))); "
    "signal.signal(signal.SIGUSR2, note); "
)


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def tasks(pid: int, note: Path) -> int:
    """Asyncio tasks of the server."""
    note.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR2)
    while not note.exists() or not note.read_text():
        time.sleep(0.05)
    return int(note.read_text())


def states(database: Path) -> Counter[str]:
    """Attempts by state."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT state, count(*) FROM attempt GROUP BY 1").fetchall()
    connection.close()
    return Counter(dict(rows))


def create(url: str, count: int) -> None:
    """`count` predictions, over a few connections."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                body = {"model": MODEL, "prompt": "a fox", "seed": number, "output_format": "png"}
                client.post(url + API, json=body).raise_for_status()

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work) for _ in range(CLIENTS)]:
            done.result()


def until(database: Path, state: str, count: int, patience_s: float) -> float:
    """Wait until `count` attempts are in `state`; returns seconds."""
    began = time.monotonic()
    while states(database)[state] < count:
        if time.monotonic() - began > patience_s:
            raise SystemExit(f"after {patience_s:g} s: {dict(states(database))}")
        time.sleep(0.5)
    return time.monotonic() - began


def watch(server: Server, fake: FakeReplicate, note: Path, seconds: float) -> dict[str, float]:
    """The server at rest for `seconds`."""
    pid = server.process.pid
    before, heard = cpu_s(pid), len(fake.heard)
    time.sleep(seconds)
    return {
        "memory_mb": round(memory_mb(pid), 1),
        "tasks": tasks(pid, note),
        "cpu_percent": round((cpu_s(pid) - before) / seconds * 100, 1),
        "polls_per_s": round((len(fake.heard) - heard) / seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--watch-s", type=float, default=30.0)
    parser.add_argument("--patience-s", type=float, default=1200.0)
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="outstanding-"))
    note, database = home / "tasks", home / "data" / "fluxserve.db"
    os.environ["TASKS_NOTE"] = str(note)
    chaos.GATEWAY = COUNTING + chaos.GATEWAY
    chaos.CONFIG += "concurrency = 0\n\n[limits]\nqueue_max = 0\n"
    fake = FakeReplicate(script=Script(default=Act(work_s=NEVER_S)), picture_size=(64, 64))
    found: dict[str, object] = {"jobs": asked.jobs}
    with serving(fake.app()) as origin:
        server = Server(home, origin, Plan(lease_s=60.0, deadline_s=1800.0, grace_s=60.0))
        try:
            found["none"] = watch(server, fake, note, min(asked.watch_s, 10.0))
            began = time.monotonic()
            create(server.url, asked.jobs)
            found["created_s"] = round(time.monotonic() - began, 1)
            until(database, "accepted", asked.jobs, asked.patience_s)
            found["accepted_s"] = round(time.monotonic() - began, 1)
            found["waiting"] = watch(server, fake, note, asked.watch_s)
            server.kill()
            found["after the kill"] = watch(server, fake, note, asked.watch_s)
            for work in list(fake.works.values()):
                work.act = replace(work.act, work_s=0.0)
            found["ended_s"] = round(until(database, "done", asked.jobs, asked.patience_s), 1)
        finally:
            server.stop()
    found["submissions"] = fake.submissions
    found["states"] = dict(states(database))
    for name, value in found.items():
        print(f"{name:15} {value}")
    is_exact = fake.submissions == asked.jobs and found["states"] == {"done": asked.jobs}
    print(json.dumps(found | {"is_exact": is_exact}))
    shutil.rmtree(home)
    return 0 if is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
