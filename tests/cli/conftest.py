"""The command line in this process, on a quick simulator and a folder of its own."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from fluxserve.cli import main


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


Cli = Callable[..., Said]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs a command as `fluxserve WORDS` would, in an empty folder."""
    quick = {"ENABLED": "true", "SECONDS": "0.05", "STEPS": "3"}
    for name, value in quick.items():
        monkeypatch.setenv(f"FLUXSERVE_SIMULATOR__{name}", value)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in ("FLUXSERVE_SERVER", "FLUXSERVE_API_KEY", "FLUXSERVE_CONFIG", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*words: str) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int | None)
        return Said(code=code or 0, out=said.out, err=said.err)

    return run


@pytest.fixture
def photo(cli: Cli, tmp_path: Path) -> str:
    """A JPEG file of 96 x 64 px."""
    path = tmp_path / "photo.jpg"
    out = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 60, 20)).save(out, "JPEG")
    path.write_bytes(out.getvalue())
    return str(path)
