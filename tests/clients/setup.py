"""Installs the official clients that the tests run, pinned, into `.clients/`.

    python tests/clients/setup.py

Python clients whose versions cannot live beside our own dependencies get a folder each; all
JavaScript clients share one. What is there already is left alone. Without node, the JavaScript
clients are left out, and so are their tests.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / ".clients"
# Folder -> what pip installs there. `--no-deps`: httpx, pydantic and the like are ours.
PYTHON: dict[str, list[str]] = {
    "replicate2": ["--no-deps", "replicate==2.0.0b4", "distro==1.9.0", "sniffio==1.3.1"],
    "blackforest": ["--no-deps", "blackforest==0.1.3"],
}
NODE: dict[str, str] = {
    "replicate": "1.4.0",
    "@ai-sdk/replicate": "2.0.57",
    "ai": "6.0.322",
    "zod": "4.6.7",
    "wavespeed": "0.3.2",
    "@ai-sdk/black-forest-labs": "2.0.41",
    "ai7": "npm:ai@7.0.173",
    "openai": "6.49.0",
    "@fal-ai/client": "1.10.1",
}


def main() -> int:
    """Exit code 0 also when node is missing; 1 when an installation failed."""
    failed = False
    for name, words in PYTHON.items():
        folder = ROOT / "python" / name
        failed |= not _install(folder, words, [*_pip(), *words, "--target", str(folder)], name)
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        _say("node and npm are not here: the JavaScript clients and their tests are left out")
        return int(failed)
    folder = ROOT / "node"
    folder.mkdir(parents=True, exist_ok=True)
    package = {"private": True, "type": "module", "dependencies": NODE}
    (folder / "package.json").write_text(json.dumps(package, indent=2))
    command = [npm, "install", "--no-audit", "--no-fund", "--loglevel", "error"]
    failed |= not _install(folder, NODE, [*command, "--prefix", str(folder)], "JavaScript")
    return int(failed)


def _pip() -> list[str]:
    return [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--upgrade",
    ]


def _install(folder: Path, wanted: object, command: list[str], name: str) -> bool:
    """Run `command` unless the folder already holds just this."""
    mark = folder / ".installed"
    text = json.dumps(wanted)
    if mark.exists() and mark.read_text() == text:
        return True
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(command, check=False).returncode:
        _say(f"the {name} clients could not be installed")
        return False
    mark.write_text(text)
    return True


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
