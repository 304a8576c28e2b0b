"""The GPU benchmark: it says what it lacks, and its plumbing runs without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments],
        cwd=ROOT,
        env={**known, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    done = run()
    assert done.returncode == 2
    assert "needs a CUDA device and found none" in done.stdout


@pytest.mark.slow
def test_a_dry_run_measures_every_part_and_says_that_it_is_dry() -> None:
    done = run("--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DRY RUN")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    parts = [line["part"] for line in lines]
    assert {"device", "copying", "ceiling", "step", "mix", "cost", "end"} == set(parts)
    assert lines[0]["is_dry_run"]
    assert lines[-1]["not_measured"] == []
    # On the CPU a shared forward gives the very bits of one alone.
    assert {line["largest_difference"] for line in lines if line["part"] == "mix"} == {0.0}
    assert torch.__version__ == lines[0]["torch"]
