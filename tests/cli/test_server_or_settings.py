"""A settings file is for the server inside a command: it is read, or refused, and never ignored."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.server import ServerProcess

Start = Callable[..., ServerProcess]


def commands(photo: str) -> dict[str, tuple[str, ...]]:
    return {
        "generate": ("generate", "a fox", "--size", "256x256", "-o", "out.png"),
        "edit": ("edit", photo, "make it grey", "-o", "out.png"),
        "bench": ("bench", "--count", "1", "--together", "1"),
    }


@pytest.mark.parametrize("name", ["generate", "edit", "bench"])
def test_a_settings_file_beside_a_server_elsewhere_is_wrong_use(
    cli: Cli, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = commands(photo)[name]
    server = "http://127.0.0.1:9"
    there = tmp_path / "flux.toml"
    there.write_text("")
    for config in (str(there), "nofile.toml"):
        said = cli(*words, "--server", server, "--config", config)
        assert said.code == 2
        assert "--config" in said.err
        assert "--server" in said.err
    monkeypatch.setenv("FLUXSERVE_SERVER", server)
    assert cli(*words, "--config", str(there)).code == 2


@pytest.mark.parametrize("name", ["generate", "edit", "bench"])
def test_a_settings_file_that_is_not_there_stops_a_command(cli: Cli, photo: str, name: str) -> None:
    said = cli(*commands(photo)[name], "--config", "nofile.toml")
    assert said.code == 3
    assert "nofile.toml cannot be read" in said.complaint


def test_a_server_elsewhere_needs_no_settings(
    cli: Cli, photo: str, start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settings file of the environment is for whoever reads one; this command reads none."""
    monkeypatch.setenv("FLUXSERVE_CONFIG", "nofile.toml")
    said = cli(*commands(photo)["generate"], "--server", start_server().url)
    assert said.code == 0, said.err
    assert Path("out.png").exists()
