"""The short form of bench/chaos.py: a real server, killed and frozen in the middle of its work."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.chaos import SHORT, run


@pytest.mark.timeout(600)
def test_whatever_is_killed_submissions_equal_predictions(tmp_path: Path) -> None:
    outcome = run(replace(SHORT, predictions=24, kills=3, patience_s=120.0), tmp_path)
    assert outcome.is_exact, outcome
