"""Approximations by name, through the front door: what is allowed runs, and the answer tells it."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server import ServerProcess

STEPS = 12  # of which `skip` computes 8
CALLS = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Nothing configured: the embedded model answers."""
    process = ServerProcess(tmp_path_factory.mktemp("data"))
    yield process
    process.stop()


@pytest.fixture(scope="module")
def picture() -> str:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(server: ServerProcess, **more: Any) -> httpx.Response:
    body = {"model": "fluxserve/embedded", "prompt": "a fox", "num_steps": STEPS, "seed": 1}
    url = f"{server.url}/fluxserve/v1/predictions"
    made = httpx.post(url, json={**body, **more}, timeout=30)
    return httpx.get(f"{url}/{made.json()['id']}?wait=60", timeout=70) if made.is_success else made


@pytest.mark.parametrize(
    ("said", "ran", "calls"),
    [
        ({}, [], STEPS),
        ({"go_fast": True}, ["skip"], CALLS),
        ({"approximate": None, "go_fast": True}, ["skip"], CALLS),
        ({"approximate": []}, [], STEPS),
        ({"approximate": [], "go_fast": True}, [], STEPS),
        ({"approximate": ["skip"]}, ["skip"], CALLS),
        ({"approximate": ["skip", "skip"], "go_fast": False}, ["skip"], CALLS),
        ({"approximate": ["ref_kv"]}, [], STEPS),  # nothing to read, nothing to reuse
    ],
)
def test_what_is_allowed_runs_and_is_told(
    server: ServerProcess, said: dict[str, Any], ran: list[str], calls: int
) -> None:
    done = ask(server, **said).json()
    assert done["status"] == "succeeded"
    assert done["metrics"]["approximations"] == ran
    assert done["metrics"]["model_calls"] == calls
    asked = said.get("approximate")
    assert done["request"]["approximate"] == (asked and list(dict.fromkeys(asked)))


@pytest.mark.parametrize(
    ("named", "calls", "reusing"),
    [(["ref_kv"], STEPS, STEPS // 2), (["ref_kv", "skip"], CALLS, CALLS // 2)],
)
def test_an_edit_may_reuse_its_references_with_and_without_skipping(
    server: ServerProcess, picture: str, named: list[str], calls: int, reusing: int
) -> None:
    words = "make it sepia"
    done = ask(server, prompt=words, images=[picture], approximate=named).json()
    assert done["status"] == "succeeded"
    assert sorted(done["metrics"]["approximations"]) == named
    assert done["metrics"]["model_calls"] == calls
    assert done["metrics"]["model_calls_without_references"] == reusing


@pytest.mark.parametrize(
    ("said", "field", "words"),
    [
        (["fast"], "approximate.0", 'one of the following: "skip", "ref_kv", "fp8"'),
        (["skip", 3], "approximate.1", "Expected: string, given: integer"),
        ("skip", "approximate", "Expected: array, given: string"),
        (["fp8"], "approximate", "8 bits need engine.fp8 or engine.dtype"),
    ],
)
def test_what_cannot_be_had_is_refused_naming_the_field(
    server: ServerProcess, said: Any, field: str, words: str
) -> None:
    answer = ask(server, approximate=said)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["field"] == field
    assert words in error["message"]


def test_with_both_forms_8_bits_are_up_to_each_request_in_every_word_for_them(
    tmp_path: Path,
) -> None:
    coarse = ServerProcess(tmp_path, "--set", "engine.fp8=on", "--set", "engine.go_fast=fp8")
    try:
        ran = {}
        for name, said in {"exact": {}, "named": {"approximate": ["fp8"]}}.items():
            done = ask(coarse, num_steps=4, **said).json()
            ran[name] = done["metrics"]["approximations"]
        assert ran == {"exact": [], "named": ["fp8"]}
        body = {"input": {"prompt": "a fox", "go_fast": True, "num_inference_steps": 4}}
        url = f"{coarse.url}/v1/models/black-forest-labs/flux-dev/predictions"
        made = httpx.post(url, json=body, headers={"Prefer": "wait"}, timeout=70).json()
        found = httpx.get(f"{coarse.url}/fluxserve/v1/predictions/{made['id']}").json()
        assert found["status"] == "succeeded", found
        assert found["metrics"]["approximations"] == ["fp8"]
    finally:
        coarse.stop()


def test_the_command_line_names_them_and_tells_what_ran(
    server: ServerProcess, tmp_path: Path
) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fluxserve", "generate", "a fox", "--server", server.url,
             "--steps", str(STEPS), "-o", "fox.png", *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = run("--approximate", "skip,ref_kv", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["metrics"]["approximations"] == ["skip"]
    assert done.stderr == f"approximated: skip; calls of the model: {CALLS}\n"
    exact = run("--approximate", "none")
    assert exact.stderr == f"approximated: nothing; calls of the model: {STEPS}\n"
    wrong = run("--approximate", "fast")
    assert wrong.returncode == 2
    assert "--approximate" in wrong.stderr
