"""The server as its users start it: ready line, refusals, drain, recovery."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server import ForkedServer, ServerProcess

API = "/fluxserve/v1/predictions"
BODY = {"model": "flux-kontext-dev", "prompt": "a fox", "size": "256x256"}
Start = Callable[..., ServerProcess]


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if "FLUXSERVE" not in name}
    return subprocess.run(
        [sys.executable, "-m", "fluxserve", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**env, "FLUXSERVE_SIMULATOR__ENABLED": "true", **environ},
        check=False,
    )


def create(url: str, prompt: str = "a fox") -> httpx.Response:
    return httpx.post(url + API, json={**BODY, "prompt": prompt}, timeout=30)


def test_it_says_when_it_is_ready_and_ends_with_0_on_sigterm(start_server: Start) -> None:
    server = start_server()
    assert httpx.get(f"{server.url}/healthz").json()["status"] == "ok"
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert server.stop() == 0


def test_a_second_server_on_the_same_data_is_refused_in_one_sentence(
    start_server: Start, tmp_path: Path
) -> None:
    start_server()
    second = run("serve", "--port", "0", "--data-dir", str(tmp_path / "server"))
    assert second.returncode == 3
    assert "--data-dir" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1


def test_a_taken_port_is_refused_in_one_sentence(start_server: Start, tmp_path: Path) -> None:
    port = start_server().url.rpartition(":")[2]
    second = run("serve", "--port", port, "--data-dir", str(tmp_path / "other"))
    assert second.returncode == 3
    assert "--port" in second.stderr


def test_a_public_address_without_a_key_is_refused(tmp_path: Path) -> None:
    words = ("serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    refused = run(*words, FLUXSERVE_SIMULATOR__ENABLED="true")
    assert refused.returncode == 3
    assert "fluxserve keys create" in refused.stderr


def test_an_unknown_setting_stops_the_start_and_names_itself(tmp_path: Path) -> None:
    refused = run("serve", "--data-dir", str(tmp_path), FLUXSERVE_SIMULATOR__SPEED="3")
    assert refused.returncode == 3
    assert "simulator.speed" in refused.stderr


def test_wrong_use_ends_with_2() -> None:
    assert run("serve", "--no-such-flag").returncode == 2


def test_a_key_made_beside_a_running_server_closes_it(start_server: Start, tmp_path: Path) -> None:
    server = start_server()
    made = run("keys", "create", "--name", "ci", "--data-dir", str(tmp_path / "server"))
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip().splitlines()[-1]
    assert httpx.post(server.url + API, json={}).status_code == 401
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "flux-dev", "prompt": "x"}
    assert httpx.post(server.url + API, json=body, headers=headers).status_code == 201
    listed = run("keys", "list", "--data-dir", str(tmp_path / "server"))
    assert "ci" in listed.stdout
    assert key not in listed.stdout


def test_a_key_made_before_the_server_lets_it_listen_in_public(
    start_server: Start, tmp_path: Path
) -> None:
    data = tmp_path / "server"
    key = run("keys", "create", "--data-dir", str(data)).stdout.strip().splitlines()[-1]
    server = start_server("--host", "0.0.0.0")
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(server.url + API, headers=headers).status_code == 200


@pytest.mark.timeout(240)
def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    """Thirty kills under load: every acknowledged prediction is there afterwards and ends."""
    data = tmp_path / "server"
    answered: list[str] = []
    quick = {
        "FLUXSERVE_DISPATCH__LEASE_S": "1.5",
        "FLUXSERVE_DISPATCH__HEARTBEAT_S": "0.5",
        "FLUXSERVE_SIMULATOR__ENABLED": "true",
        "FLUXSERVE_SIMULATOR__SECONDS": "0.05",
    }
    for round_ in range(30):
        server = ForkedServer(data, quick)
        goal = len(answered) + 2 + round_ % 7  # another moment every time
        reached = threading.Event()

        def load(
            url: str = server.url, goal: int = goal, reached: threading.Event = reached
        ) -> None:
            with httpx.Client(verify=False) as client, contextlib.suppress(httpx.HTTPError):
                while True:
                    answer = client.post(url + API, json=BODY)
                    if answer.status_code == 201:
                        answered.append(answer.json()["id"])
                    if len(answered) >= goal:
                        reached.set()

        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(load)
            assert reached.wait(60)
            server.kill()
    server = ForkedServer(data, quick)
    assert len(answered) > 30
    end = time.monotonic() + 90
    left = set(answered)
    with httpx.Client(base_url=server.url, verify=False) as client:
        while left and time.monotonic() < end:
            for id_ in list(left):
                row = client.get(f"{API}/{id_}", params={"wait": "5"}, timeout=30)
                assert row.status_code == 200, "an acknowledged prediction is gone"
                told = row.json()
                if told["status"] == "failed":  # it was running at several of the kills
                    assert "times and is given up" in told["error"]["message"]
                if told["status"] in ("succeeded", "failed"):
                    left.discard(id_)
    server.kill()
    assert not left
    assert data.exists()


def test_sigterm_sends_waiters_home_and_the_work_goes_on_after_a_restart(
    start_server: Start,
) -> None:
    slow = {"FLUXSERVE_SIMULATOR__SECONDS": "3", "FLUXSERVE_DISPATCH__DRAIN_S": "0.1"}
    server = start_server(**slow)
    id_ = create(server.url).json()["id"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.get, f"{server.url}{API}/{id_}?wait=30", timeout=40)
        time.sleep(0.5)
        began = time.monotonic()
        server.send(signal.SIGTERM)
        assert waiting.result().json()["status"] in ("queued", "running")
        assert server.stop() == 0
        assert time.monotonic() - began < 10
    again = start_server()
    done = httpx.get(f"{again.url}{API}/{id_}?wait=20", timeout=30).json()
    assert done["status"] == "succeeded"
