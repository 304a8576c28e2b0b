"""The official Python and JavaScript packages, unmodified, against a real server."""

import functools
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clients.cases import NODE, Served, names_in, results_of

HERE = Path(__file__).parent


def _scripts() -> list[str]:
    """The scripts whose clients are installed; tests/clients/setup.py installs the JavaScript."""
    found = ["python_cases.py"]
    if (NODE / "node_modules" / "@fal-ai").exists() and shutil.which("node"):
        found.append("fal_cases.mjs")
    return found


@functools.cache
def _results(script: str, served: Served, photo: Path) -> dict[str, str | None]:
    host = urlsplit(served.url).netloc
    environ = {
        "PHOTO": str(photo),
        "FAL_KEY": served.key,
        "FAL_RUN_HOST": f"{host}/fal/run",
        "FAL_QUEUE_RUN_HOST": f"{host}/fal/queue",
    }
    return results_of(HERE / script, served, environ)


@pytest.mark.parametrize(
    ("script", "name"),
    [(script, name) for script in _scripts() for name in names_in(HERE / script)],
)
def test_an_official_client_works(script: str, name: str, served: Served, photo: Path) -> None:
    results = _results(script, served, photo)
    assert name in results
    assert results[name] is None, results[name]
