"""The docs keep up with the code."""

import subprocess
import sys
from pathlib import Path

from fluxserve.dialects import DIALECTS

ROOT = Path(__file__).resolve().parent.parent


def test_the_generated_tables_are_fresh() -> None:
    checked = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_every_dialect_has_a_page() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "dialects").glob("*.md")}
    assert {dialect.name for dialect in DIALECTS} <= pages


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8")[:1500]
    assert "make serve" in head
    assert "make test" in head
