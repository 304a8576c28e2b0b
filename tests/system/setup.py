"""Sees to it that the programs which tests need beside Python are there.

    python -m tests.system.setup

What is missing is installed by apt-get where that is possible; otherwise one line each says which
tests are left out. Node is never installed: Debian's npm pulls in hundreds of packages.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.system import programs

INSTALL_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Something to run, and what is lost without it."""

    name: str
    find: Callable[[], Path | str | None]
    packages: tuple[str, ...]  # Debian's; empty: not installed by us
    tests: str


PROGRAMS = (
    Program(
        name="PostgreSQL",
        find=programs.postgresql,
        packages=("postgresql",),
        tests="the store on PostgreSQL and several servers on one database",
    ),
    Program(
        name="Chromium",
        find=programs.chromium,
        packages=("chromium",),
        tests="the playground in a browser",
    ),
    Program(
        name="node with npm",
        find=programs.node,
        packages=(),
        tests="the JavaScript clients",
    ),
)


def main() -> int:
    """Exit code 0 in any case: tests that lack a program are skipped with the reason."""
    wanted = [one for one in PROGRAMS if one.find() is None]
    packages = [name for one in wanted for name in one.packages]
    if packages and can_install():
        _say(f"installing {', '.join(packages)} for the tests")
        install(packages)
    for one in wanted:
        if one.find() is None:
            _say(f"{one.name} is not here: install it, or these tests are left out: {one.tests}")
    return 0


def can_install() -> bool:
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def install(packages: Sequence[str]) -> bool:
    """By apt-get, one by one so that one that cannot be had does not cost the others."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0"]
    words = [["update"], *(["install", "--no-install-recommends", name] for name in packages)]
    codes = []
    for rest in words:
        try:
            ended = subprocess.run(
                [*command, *rest],
                env=environ,
                check=False,
                timeout=INSTALL_S,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except subprocess.TimeoutExpired:
            _say(f"apt-get {' '.join(rest)} took longer than {INSTALL_S} s")
            return False
        if ended.returncode:
            _say(f"apt-get {' '.join(rest)} failed: {ended.stdout.strip().splitlines()[-1:]}")
        codes.append(ended.returncode)
    return not any(codes[1:])


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
