"""A start that is refused leaves nothing running: the engine's process begins before the server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.server import ServerProcess


def engines(data_dir: Path) -> list[psutil.Process]:
    """Engine processes that put their pictures into this data directory."""
    place = str(data_dir / "spool")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(place) for word in process.info["cmdline"] or ())
    ]


def refused(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fluxserve", "serve", *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    folder = tmp_path_factory.mktemp("data")
    server = ServerProcess(folder)
    yield server, folder
    server.stop()
    assert engines(folder) == []


def test_a_second_server_on_one_data_directory_leaves_no_engine(
    there: tuple[ServerProcess, Path],
) -> None:
    _, folder = there
    (mine,) = engines(folder)
    second = refused("--port", "0", "--data-dir", str(folder))
    assert second.returncode == 3
    assert [engine.pid for engine in engines(folder)] == [mine.pid]


def test_a_taken_port_leaves_no_engine(there: tuple[ServerProcess, Path], tmp_path: Path) -> None:
    server, _ = there
    port = server.url.rpartition(":")[2]
    second = refused("--port", port, "--data-dir", str(tmp_path))
    assert second.returncode == 3
    assert "cannot listen" in second.stderr
    assert engines(tmp_path) == []


def test_an_open_door_is_refused_and_leaves_no_engine(tmp_path: Path) -> None:
    second = refused("--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    assert second.returncode == 3
    assert "without a key" in second.stderr
    assert engines(tmp_path) == []


def test_the_engine_of_a_killed_server_ends_by_itself(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    (engine,) = engines(tmp_path)
    server.kill()
    engine.wait(20)
    assert engines(tmp_path) == []
