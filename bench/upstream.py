"""What does it cost to have this server between a client and a provider, pictures included?

A fake provider (its own process) hands out 1 MP JPEGs. In turns, a client asks it directly and asks
our server, which asks it: submit, poll, download. Reported is processor time per prediction: of the
direct client, of the client behind our server, and of our server. What the server adds is its own
time plus what the client needs more (or less) than a direct one.

    python -m bench.upstream
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.chaos import API, MODEL, Plan, Server  # noqa: E402

TARGET_MS = 10.0
CLIENT_POLL_S = 0.05


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def direct(client: httpx.Client, origin: str, count: int) -> int:
    """`count` predictions at the provider itself; returns bytes of pictures."""
    headers = {"authorization": "Bearer fake-key"}
    size = 0
    for number in range(count):
        body = {"input": {"prompt": "a fox", "seed": number, "output_format": "jpg"}}
        url = f"{origin}/v1/models/{MODEL}/predictions"
        job = client.post(url, json=body, headers=headers).raise_for_status().json()
        while job["status"] not in ("succeeded", "failed"):
            time.sleep(CLIENT_POLL_S)
            job = client.get(job["urls"]["get"], headers=headers).raise_for_status().json()
        size += len(client.get(job["output"]).raise_for_status().content)
    return size


def through(client: httpx.Client, url: str, count: int) -> int:
    """`count` predictions by way of our server; returns bytes of pictures."""
    size = 0
    for number in range(count):
        body = {"model": MODEL, "prompt": "a fox", "seed": number, "output_format": "jpeg"}
        job = client.post(url + API, json=body).raise_for_status().json()
        while not job["finished_at"]:
            job = client.get(f"{url}{API}/{job['id']}?wait=30").raise_for_status().json()
        size += len(client.get(job["outputs"][0]["url"]).raise_for_status().content)
    return size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--each", type=int, default=15, help="predictions per round and way")
    parser.add_argument("--size", default="1024x1024")
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="upstream-"))
    fake = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes", "replicate", "--size", asked.size],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert fake.stdout is not None
    origin = fake.stdout.readline().strip()
    server = Server(home, origin, Plan(lease_s=60.0, deadline_s=1800.0, grace_s=60.0))
    rows: list[tuple[float, float, float, float, float]] = []
    try:
        with httpx.Client(trust_env=False, timeout=30) as client:
            bytes_each = direct(client, origin, 3) // 3
            through(client, server.url, 10)
            for _ in range(asked.rounds):
                wall, cpu = time.perf_counter(), time.process_time()
                direct(client, origin, asked.each)
                alone, alone_wall = time.process_time() - cpu, time.perf_counter() - wall
                wall, cpu = time.perf_counter(), time.process_time()
                before = cpu_s(server.process.pid)
                through(client, server.url, asked.each)
                behind, behind_wall = time.process_time() - cpu, time.perf_counter() - wall
                ours = cpu_s(server.process.pid) - before
                found = (alone, behind, ours, alone_wall, behind_wall)
                rows.append(tuple(value * 1000 / asked.each for value in found))
    finally:
        server.stop()
        fake.communicate("")
        shutil.rmtree(home)
    added = [ours + behind - alone for alone, behind, ours, _, _ in rows]
    names = ("direct client", "client behind us", "our server", "direct, wall", "through us, wall")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {bytes_each} bytes a picture")
    for index, name in enumerate(names):
        values = [row[index] for row in rows]
        print(f"{name:18} {statistics.median(values):7.2f} ms  "
              f"{min(values):.2f} .. {max(values):.2f}")  # fmt: skip
    median = statistics.median(added)
    print(f"{'added CPU':18} {median:7.2f} ms  {min(added):.2f} .. {max(added):.2f}")
    report = {"added_cpu_ms": round(median, 3), "target_ms": TARGET_MS, "rounds": asked.rounds}
    medians = {n: round(statistics.median([r[i] for r in rows]), 3) for i, n in enumerate(names)}
    print(json.dumps(report | {"medians_ms": medians, "picture_bytes": bytes_each}))
    return 0 if median < TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
