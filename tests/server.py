"""A real server process for tests: started, spoken to, stopped, killed."""

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

READY = "fluxserve ready on "
START_S = 60.0


class ServerProcess:
    """`fluxserve serve` on a free port. `url` is known once it is ready."""

    def __init__(
        self, data_dir: Path, *words: str, environ: Mapping[str, str] | None = None
    ) -> None:
        env = {name: value for name, value in os.environ.items() if "FLUXSERVE" not in name}
        env.update(environ or {})
        command = [sys.executable, "-m", "fluxserve", "serve", "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.errors: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read_out, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.url = self._wait_until_ready()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> int:
        """SIGTERM, then the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._end()

    def kill(self) -> None:
        """SIGKILL, nothing saved."""
        self._process.kill()
        self._end()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def _end(self) -> int:
        code = self._process.wait(60)
        for thread in self._threads:
            thread.join(10)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
        return code

    def _wait_until_ready(self) -> str:
        while True:
            try:
                line = self._lines.get(timeout=START_S)
            except queue.Empty:
                self.kill()
                raise AssertionError("the server was not ready in time") from None
            if line is None:
                code = self._end()
                raise AssertionError(f"the server ended with {code}: {''.join(self.errors)}")
            if line.startswith(READY):
                return line.removeprefix(READY).strip()

    def _read_out(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self.errors.append(line)


class ForkedServer:
    """The same server, forked from a process that has imported it already: quick to start again.

    A process of its own with its own memory and files, so a kill is as hard as any other.
    """

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(["fluxserve.serving", "fluxserve.cli"])

    def __init__(self, data_dir: Path, environ: Mapping[str, str]) -> None:
        reader, writer = self._context.Pipe(duplex=False)
        words = ["fluxserve", "serve", "--port", "0", "--data-dir", str(data_dir)]
        self._process = self._context.Process(target=_run_cli, args=(words, dict(environ), writer))
        self._process.start()
        writer.close()
        with os.fdopen(os.dup(reader.fileno()), encoding="utf-8") as lines:
            line = next((line for line in lines if line.startswith(READY)), "")
        reader.close()
        assert line, f"the server ended with {self._process.exitcode}"
        self.url = line.removeprefix(READY).strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(30)


def _run_cli(words: list[str], environ: dict[str, str], writer: Connection) -> None:
    os.dup2(writer.fileno(), 1)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    os.environ.update(environ)
    sys.argv = words
    from fluxserve.cli import main

    main()
