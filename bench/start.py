"""How long after `fluxserve serve` is a picture there?

Real server processes on fresh data directories, the embedded model: seconds from the start of the
command until it prints its ready line, and until the first picture of ten steps has been delivered.

    python -m bench.start [--rounds 7] [--against SRC]

With `--against` the `src` folder of another version takes turns with this one, and the median ratio
of neighbouring rounds is told: other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent / "src"
WAIT_S = 60
BODY = {"model": "fluxserve/embedded", "prompt": "a red apple", "num_steps": 10, "seed": 1}


def first_picture(source: Path) -> tuple[float, float]:
    """Seconds until the ready line, and until the first picture."""
    env = {name: value for name, value in os.environ.items() if "FLUXSERVE" not in name}
    env["PYTHONPATH"] = str(source)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fluxserve", "serve", "--port", "0", "--data-dir", folder]
        began = time.monotonic()
        server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            url = server.stdout.readline().rpartition(" ")[2].strip()
            ready = time.monotonic() - began
            made = call(f"{url}/fluxserve/v1/predictions", BODY)
            done = call(f"{url}/fluxserve/v1/predictions/{made['id']}?wait={WAIT_S}")
            assert done["status"] == "succeeded", done
            return ready, time.monotonic() - began
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(WAIT_S)


def call(url: str, body: object = None) -> dict[str, str]:
    """The JSON that a URL answers with; POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=WAIT_S + 10) as answer:
        found: dict[str, str] = json.load(answer)
        return found


def line(name: str, runs: Sequence[tuple[float, float]]) -> str:
    ready, picture = (statistics.median(column) for column in zip(*runs, strict=True))
    best = min(picture for _, picture in runs)
    return f"{name:8} ready {ready:6.2f} s   first picture {picture:6.2f} s (best {best:.2f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", type=Path, help="the src folder of another version")
    said = parser.parse_args()
    sources = {"this": HERE} | ({"other": said.against} if said.against else {})
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for source in sources.values():
        first_picture(source)  # files into memory, bytecode written
    for _ in range(said.rounds):
        for name, source in sources.items():
            runs[name].append(first_picture(source))
    for name, found in runs.items():
        print(line(name, found))
    figures: dict[str, object] = {"bench": "start", "rounds": said.rounds, "seconds": runs}
    if said.against:
        pairs = zip(runs["other"], runs["this"], strict=True)
        ratio = statistics.median(other[1] / this[1] for other, this in pairs)
        print(f"the other version takes {ratio:.2f} times as long to its first picture")
        figures["ratio"] = round(ratio, 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
