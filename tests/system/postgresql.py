"""A private PostgreSQL for the tests: made in a temporary folder, gone afterwards."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.system import programs

USER = "fluxserve"
READY = "database system is ready to accept connections"
START_S = 60.0
TRIES = 5  # another program may take a port between our look and the server's start
# What the tests write may be lost when the machine crashes: they run again anyway.
CARELESS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class PostgresServer:
    """`postgres` on a loopback port and on a socket in its own folder, trusting everybody there.

    It refuses to run as root, so for root it runs as `postgres` or `nobody`.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self._account = _account()
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._reader: threading.Thread | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Make the cluster and wait until it takes connections; RuntimeError with its words."""
        if self._account:
            shutil.chown(self._folder, *self._account)
        made = self._run(
            *("initdb", "-D", str(self._folder / "data"), "-U", USER, "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
        )
        words, _ = made.communicate(timeout=START_S)
        if made.returncode:
            raise RuntimeError(f"initdb failed: {words}")
        for _ in range(TRIES):
            self.port = _free_port()
            if self._is_started():
                return
        raise RuntimeError(f"PostgreSQL does not start: {''.join(self._lines)}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once: nothing is to be kept
            self._process.wait(START_S)
        if self._reader is not None:
            self._reader.join(START_S)
        if self._process is not None and self._process.stdout:
            self._process.stdout.close()
        self._process = self._reader = None

    def _is_started(self) -> bool:
        settings = (f"unix_socket_directories={self._folder}", *CARELESS)
        self._process = self._run(
            *("postgres", "-D", str(self._folder / "data"), "-p", str(self.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=60"),
            *(word for setting in settings for word in ("-c", setting)),
        )
        assert self._process.stdout
        is_ready = threading.Event()
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout, is_ready), daemon=True
        )
        self._reader.start()
        is_ready.wait(START_S)  # set at the end of its output too
        if self._process.poll() is None and any(READY in line for line in self._lines):
            return True
        self.stop()
        return False

    def _read(self, pipe: IO[str], is_ready: threading.Event) -> None:
        self._lines.clear()
        for line in pipe:
            self._lines.append(line)
            if READY in line:
                is_ready.set()
        is_ready.set()

    def _run(self, name: str, *words: str) -> subprocess.Popen[str]:
        user, group = self._account or (None, None)
        return subprocess.Popen(
            [str(self._binaries / name), *words],
            cwd=self._folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
            user=user,
            group=group,
            extra_groups=[] if self._account else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextmanager
def running(binaries: Path | None = None) -> Iterator[str]:
    """The URL of a new server's empty database, until the end of the block."""
    found = binaries or programs.postgresql()
    if found is None:
        raise FileNotFoundError("PostgreSQL is not here (initdb, postgres)")
    folder = Path(tempfile.mkdtemp(prefix="fluxserve-postgresql-"))
    server = PostgresServer(found, folder)
    try:
        server.start()
        yield server.url
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> tuple[int, int] | None:
    """User and group to run as; None: as we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
