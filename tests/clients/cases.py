"""Runs scripts of real clients against a real server that wants a key; a script prints its cases.

A Python script holds functions without arguments, a JavaScript one methods of `cases`; for each,
a line {"case": name, "error": null or text} comes back, and every case is a test.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.clients.replicate.receiver import receiving
from tests.server import ServerProcess

CLIENTS = Path(__file__).resolve().parents[2] / ".clients"
NODE = CLIENTS / "node"
LIMIT_S = 200
SIMULATED = {
    "FLUXSERVE_SIMULATOR__ENABLED": "true",
    "FLUXSERVE_SIMULATOR__SECONDS": "0.2",
    "FLUXSERVE_SIMULATOR__STEPS": "4",
    "FLUXSERVE_FETCH__ALLOW": "127.0.0.0/8",
    "FLUXSERVE_WAVESPEED__SYNC_TIMEOUT_S": "3",
}
CASE = {
    ".py": re.compile(r"^def (\w+)\(\) -> None:", re.MULTILINE),
    ".mjs": re.compile(r"^  async (\w+)\(\) \{", re.MULTILINE),
}


@dataclass(frozen=True, slots=True)
class Served:
    """Where a server is, a key for it, and the CA file of its certificate ("" over http)."""

    url: str
    key: str
    ca: str = ""


@contextmanager
def serving(folder: Path, *, tls: bool, **settings: str) -> Iterator[Served]:
    """A server process on the simulator, with one key; `settings` are of its environment."""
    words: list[str] = []
    ca_file = ""
    if tls:
        ca = trustme.CA()
        certificate = ca.issue_cert("127.0.0.1", "localhost")
        ca.cert_pem.write_to_path(folder / "ca.pem")
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        for part in certificate.cert_chain_pems:
            part.write_to_path(folder / "cert.pem", append=True)
        words = ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]
        ca_file = str(folder / "ca.pem")
    data = folder / "data"
    key = _new_key(data)
    server = ServerProcess(data, *words, environ={**SIMULATED, **settings})
    try:
        yield Served(server.url, key, ca_file)
    finally:
        server.stop()


def _new_key(data: Path) -> str:
    command = [sys.executable, "-m", "fluxserve", "keys", "create", "--data-dir", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip().splitlines()[-1]


def names_in(script: Path) -> list[str]:
    return CASE[script.suffix].findall(script.read_text("utf-8"))


def results_of(
    script: Path, served: Served, environ: Mapping[str, str], modules: Path | None = None
) -> dict[str, str | None]:
    """Case -> what went wrong, or None. `modules` is put on Python's path."""
    env = {name: value for name, value in os.environ.items() if "WAVESPEED" not in name}
    env |= {"SERVER": served.url, "KEY": served.key, **environ}
    if served.ca:
        env |= dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), served.ca)
        env["NODE_EXTRA_CA_CERTS"] = served.ca
    if script.suffix == ".mjs":  # modules are looked for beside the script
        command = ["node", shutil.copy(script, NODE / script.name)]
    else:
        command = [sys.executable, str(script)]
        if modules:
            env["PYTHONPATH"] = str(modules)
    with receiving() as receiver:
        env["HOOK"] = receiver.url
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return {line["case"]: line["error"] for line in lines}
