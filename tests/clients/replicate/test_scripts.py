"""Clients that run in processes of their own: Python 2.0.0b4, JavaScript 1.4.0, Vercel's AI SDK.

Each script runs once per server and prints a line per case; every case is a test here.
"""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.replicate.conftest import CLIENTS, Served
from tests.clients.replicate.receiver import receiving

HERE = Path(__file__).parent
LIMIT_S = 240
PYTHON2 = CLIENTS / "python" / "replicate2"
NODE = CLIENTS / "node"
CASE = {
    ".py": re.compile(r"^def (\w+)\(\) -> None:", re.MULTILINE),
    ".mjs": re.compile(r"^  async (\w+)\(\) \{", re.MULTILINE),
}


def _scripts() -> list[str]:
    """The scripts whose clients are installed; tests/clients/setup.py installs them."""
    found = ["python2.py"] if (PYTHON2 / ".installed").exists() else []
    if (NODE / ".installed").exists() and shutil.which("node"):
        found += ["javascript.mjs", "aisdk.mjs"]
    return found


def _cases() -> list[tuple[str, str]]:
    return [
        (script, name)
        for script in _scripts()
        for name in CASE[Path(script).suffix].findall((HERE / script).read_text("utf-8"))
    ]


@functools.cache
def _results(script: str, served: Served, photo: Path) -> dict[str, str | None]:
    """Case -> what went wrong, or None."""
    env = {**served.environ, "PHOTO": str(photo)}
    if script.endswith(".mjs"):
        # Modules are looked for beside the script.
        command = ["node", shutil.copy(HERE / script, NODE / script)]
    else:
        command = [sys.executable, str(HERE / script)]
        env["PYTHONPATH"] = str(PYTHON2)
    with receiving() as receiver:
        env["HOOK"] = receiver.url
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-4000:]
    return {line["name"]: line["error"] for line in lines}


@pytest.mark.parametrize(("script", "case"), _cases())
def test_a_client_is_content(script: str, case: str, served: Served, photo: Path) -> None:
    results = _results(script, served, photo)
    assert case in results, f"{script} did not get as far as {case}"
    assert results[case] is None, results[case]
