"""Is a paid submission ever doubled or lost, whatever is killed, frozen or dropped on the way?

A server of ours stands between clients and a provider that charges for what it accepts. The server
is killed (SIGKILL) and frozen (SIGSTOP, SIGCONT) again and again while the provider loses a share
of its answers after accepting. Afterwards the provider's count must equal that of the predictions.

    python -m bench.chaos                 # 300 predictions, 30 kills, a few minutes
    python -m bench.chaos --short         # what the tests run
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fakes.replicate import FakeReplicate
from tests.fakes.script import Act, Script, Submit
from tests.fakes.server import serving

API = "/fluxserve/v1/predictions"
MODEL = "black-forest-labs/flux-kontext-pro"
# A gateway needs no torch: it starts in a second, as a bare install does.
GATEWAY = (
    "import importlib.util as u; find = u.find_spec; "
    "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest); "
    "from fluxserve.cli import main; main()"
)
# A lease of the server ends after `lease_s` (claimed), TIMEOUT_S + 15 (an intent), or that with
# `deadline_s` and `grace_s` (accepted): a freeze outlasts them all.
TIMEOUT_S = 5.0
CONFIG = """
[dispatch]
upstream_lease_s = {plan.lease_s}

[[upstream]]
name = "provider"
kind = "replicate"
base_url = "{origin}"
key_env = "CHAOS_KEY"
timeout_s = {timeout_s}
cool_down_s = 0.1
deadline_s = {plan.deadline_s}
reconcile_grace_s = {plan.grace_s}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run of chaos."""

    predictions: int = 300
    kills: int = 30
    freezes: int = 3
    freeze_s: float = 48.0  # longer than any timeout and any lease of the server
    lease_s: float = 5.0
    deadline_s: float = 20.0
    drop: float = 0.05  # share of the provider's answers that are lost
    grace_s: float = 5.0
    work_s: float = 3.0  # the provider's time for a picture
    spread_s: float = 5.0  # a client's longest pause between two predictions
    between_s: tuple[float, float] = (0.3, 1.8)  # from a ready server to its next trouble
    clients: int = 8
    patience_s: float = 300.0  # for the end of everything
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found afterwards."""

    predictions: int
    submissions: int
    dropped: int
    kills: int
    freezes: int
    lapsed: int  # leases of running predictions that ended while the server was frozen
    statuses: dict[str, int]
    finished_twice: int
    unfinished: int
    attempts: dict[str, int]
    seconds: float

    @property
    def is_exact(self) -> bool:
        return (
            self.submissions == self.predictions
            and self.unfinished == 0
            and self.finished_twice == 0
            and self.statuses == {"succeeded": self.predictions}
        )


class Server:
    """Our server as a process that can be killed, frozen and started again."""

    def __init__(self, home: Path, origin: str, plan: Plan) -> None:
        self.home = home
        self.lapsed = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = CONFIG.format(origin=origin, plan=plan, timeout_s=TIMEOUT_S)
        (home / "config.toml").write_text(config)
        self._log = (home / "server.log").open("a")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        words = ["serve", "--port", str(self.port), "--data-dir", str(self.home / "data")]
        source = str(Path(__file__).resolve().parent.parent / "src")
        process = subprocess.Popen(
            [sys.executable, "-c", GATEWAY, *words, "--config", str(self.home / "config.toml")],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"CHAOS_KEY": "fake-key", "PYTHONPATH": source},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if "ready" not in line:
            raise RuntimeError(f"the server did not start: see {self.home / 'server.log'}")
        return process

    def kill(self) -> None:
        self.process.kill()
        self._end()
        self.process = self._start()

    def freeze(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.lapsed += lapsed(self.home / "data" / "fluxserve.db")
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.terminate()
        self._end()
        self._log.close()

    def _end(self) -> None:
        self.process.wait(60)
        if self.process.stdout:
            self.process.stdout.close()


def run(plan: Plan, home: Path) -> Outcome:
    """One run; `home` is an empty folder."""
    faults = (Submit.DROP_AFTER, Submit.ERROR_AFTER)
    dice = random.Random(plan.seed)
    script = Script(default=Act(work_s=plan.work_s), faults=faults, share=plan.drop, dice=dice)
    fake = FakeReplicate(script=script, picture_size=(64, 64))
    began = time.monotonic()
    with serving(fake.app()) as origin:
        server = Server(home, origin, plan)
        try:
            asked: dict[int, str] = {}
            is_over = threading.Event()
            with ThreadPoolExecutor(plan.clients) as pool:
                numbers = range(plan.predictions)
                jobs = [pool.submit(ask, server.url, n, asked, plan) for n in numbers]
                trouble(server, plan, random.Random(plan.seed + 1), asked, is_over)
                for job in jobs:
                    job.result()
            statuses = wait_for(server.url, list(asked.values()), plan.patience_s)
        finally:
            server.stop()
    dropped = sum(work.act.submit is not Submit.OK for work in fake.works.values())
    finished, attempts = look_into(home / "data" / "fluxserve.db")
    return Outcome(
        predictions=len(set(asked.values())),
        submissions=fake.submissions,
        dropped=dropped,
        kills=plan.kills,
        freezes=plan.freezes,
        lapsed=server.lapsed,
        statuses=dict(Counter(statuses.values())),
        finished_twice=sum(count > 1 for count in finished.values()),
        unfinished=len(set(asked.values()) - finished.keys()),
        attempts=attempts,
        seconds=round(time.monotonic() - began, 1),
    )


def ask(url: str, number: int, asked: dict[int, str], plan: Plan) -> None:
    """Create one prediction, again under the same name until it is answered."""
    body = {"model": MODEL, "prompt": f"fox {number}", "seed": number, "output_format": "png"}
    # Spread over the run, so that every kill meets some.
    time.sleep(random.Random(number).random() * plan.spread_s)
    while number not in asked:
        try:
            answer = httpx.post(
                url + API,
                json=body,
                headers={"idempotency-key": f"chaos-{number}"},
                timeout=15,
                trust_env=False,
            )
            if answer.status_code == 201:
                asked[number] = answer.json()["id"]
                return
        except httpx.HTTPError:
            pass  # killed in mid-answer: the name makes the repeat the same prediction
        time.sleep(0.1)


def trouble(
    server: Server, plan: Plan, dice: random.Random, asked: dict[int, str], over: threading.Event
) -> None:
    """Kill and freeze the server as often as the plan says."""
    troubles = ["kill"] * plan.kills + ["freeze"] * plan.freezes
    dice.shuffle(troubles)
    for kind in troubles:
        time.sleep(dice.uniform(*plan.between_s))
        if kind == "kill":
            server.kill()
        else:
            server.freeze(plan.freeze_s)
    over.set()


def wait_for(url: str, ids: list[str], patience_s: float) -> dict[str, str]:
    """The final status of every prediction, or the one it has when patience is over."""
    statuses: dict[str, str] = {}
    end = time.monotonic() + patience_s
    with httpx.Client(trust_env=False, timeout=30) as client:
        while time.monotonic() < end and len(statuses) < len(ids):
            for id_ in ids:
                if id_ in statuses:
                    continue
                told = client.get(f"{url}{API}/{id_}").json()
                if told["finished_at"]:
                    statuses[id_] = told["status"]
            time.sleep(0.5)
    return statuses | {id_: "unfinished" for id_ in ids if id_ not in statuses}


def lapsed(database: Path) -> int:
    """How many running predictions have outlived their lease."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        [(count,)] = connection.execute(
            "SELECT count(*) FROM prediction WHERE status = 'running' AND lease_until < ?",
            [time.time() * 1e6],
        )
    connection.close()
    return int(count)


def look_into(database: Path) -> tuple[dict[str, int], dict[str, int]]:
    """How often each prediction was finished, and how many attempts ended in which state."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        finished = connection.execute(
            "SELECT prediction_id, count(*) FROM event WHERE kind = 'finished' GROUP BY 1"
        ).fetchall()
        states = connection.execute("SELECT state, count(*) FROM attempt GROUP BY 1").fetchall()
    connection.close()
    return dict(finished), dict(states)


SHORT = Plan(
    predictions=40, kills=5, freezes=1, freeze_s=6.0, drop=0.15, clients=4, grace_s=2.0,
    work_s=0.3, spread_s=0.2, lease_s=3.0, deadline_s=60.0, between_s=(0.3, 1.0),
    patience_s=60.0,
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the folder of the server")
    asked = parser.parse_args()
    plan = SHORT if asked.short else Plan(seed=asked.seed)
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    outcome = run(plan, home)
    for name, value in asdict(outcome).items():
        print(f"{name:15} {value}")
    print(json.dumps(asdict(outcome) | {"is_exact": outcome.is_exact}))
    if asked.keep or not outcome.is_exact:
        print(f"kept: {home}")
    else:
        shutil.rmtree(home)
    return 0 if outcome.is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
