"""How engine processes are started, and that some may be before the server itself is there.

    settings ─> setups_of ─> Setup ── spawn ──> Spawned, or it waits in Early to be taken

Imports little: what starts first must not wait for what comes later. No torch.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fluxserve.engines.local.cores import physical_cores
from fluxserve.flux.folder import embedded_folder
from fluxserve.flux.skips import FP8

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
LOCAL = "local"
SILENCE_S = 15.0  # without a beat for so long a process is taken for frozen
# Where a driver is, there may be a GPU; Linux, and Linux inside Windows.
NVIDIA = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


class EngineSettings(Protocol):
    """What the settings say about the engine; every field has the name it has there."""

    @property
    def device(self) -> str: ...
    @property
    def model_dir(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def fp8(self) -> str: ...
    @property
    def batch_tokens_max(self) -> int: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def stuck_s(self) -> float: ...
    @property
    def preview_steps(self) -> int: ...
    @property
    def go_fast(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What an engine process is started with."""

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    fp8: str = "off"  # auto, on, off: copies of the linears in 8 bits beside the exact ones
    threads: int = 0  # 0: one a core
    rows_max: int = 0  # 0: the scheduler's own
    preview_steps: int = 0
    requests_max: int = 16  # jobs that it holds at once
    spool: Path
    stuck_s: float = 120.0  # one piece of work may keep the device for so long
    silence_s: float = SILENCE_S

    @property
    def may_have_fp8(self) -> bool:
        """Whether its device may turn out to have the linears in 8 bits, before it is ready."""
        if self.dtype == FP8 or self.fp8 == "on":
            return True
        is_gpu = self.device.startswith("cuda") or (
            self.device == "auto" and any(path.exists() for path in NVIDIA)
        )
        return self.fp8 == "auto" and is_gpu

    def command(self, fd: int) -> list[str]:
        return [
            sys.executable, "-m", "fluxserve.engines.local.child",
            "--fd", str(fd), "--model", str(self.model), "--device", self.device,
            "--dtype", self.dtype, "--fp8", self.fp8, "--threads", str(self.threads),
            "--spool", str(self.spool), "--rows-max", str(self.rows_max),
            "--preview-steps", str(self.preview_steps), "--requests-max", str(self.requests_max),
        ]  # fmt: skip


def setups_of(name: str, settings: EngineSettings, data_dir: Path) -> Sequence[Setup]:
    """One for each device; `embedded` is the small model of the package whatever is set."""
    has_own = settings.model_dir and name != EMBEDDED
    model = Path(settings.model_dir) if has_own else embedded_folder()
    devices = [device.strip() for device in settings.device.split(",") if device.strip()]
    devices = devices or ["auto"]
    return [
        Setup(
            model=model,
            device=device,
            dtype=settings.dtype,
            fp8=settings.fp8,
            threads=settings.threads or _share(devices),
            rows_max=settings.batch_tokens_max,
            preview_steps=settings.preview_steps,
            requests_max=settings.concurrency,
            spool=Path(data_dir) / "spool" / name / f"{at}-{device.replace(':', '-')}",
            stuck_s=settings.stuck_s,
        )
        for at, device in enumerate(devices)
    ]


def _share(devices: Sequence[str]) -> int:
    """CPU threads of each of several CPU devices; 0, all of the cores, where it is the only one."""
    rivals = sum(device in ("cpu", "auto") for device in devices)
    return max(1, physical_cores() // rivals) if rivals > 1 else 0


# --- processes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Spawned:
    """A process and our end of the socket that it listens to."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


def spawn(setup: Setup) -> Spawned:
    """Start a process; OSError. It ends by itself when our end of the socket is closed."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                setup.command(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
    except OSError:
        ours.close()
        raise
    return Spawned(process, ours)


class Early:
    """Processes that were started before there was anybody to take care of them."""

    def __init__(self, setups: Sequence[Setup]) -> None:
        """What cannot be started now is left to be started later, and to be reported then."""
        self._waiting: list[tuple[Setup, Spawned]] = []
        for setup in setups:
            try:
                self._waiting.append((setup, spawn(setup)))
            except OSError as error:
                log.info("an engine process could not be started early: %s", error)

    def take(self, setup: Setup) -> Spawned | None:
        """The process with this setup, once; from now on its end is for the taker to see to."""
        for at, (there, spawned) in enumerate(self._waiting):
            if there == setup:
                del self._waiting[at]
                return spawned
        return None

    def close(self) -> None:
        """Kill those that nobody took."""
        while self._waiting:
            _, spawned = self._waiting.pop()
            spawned.kill()
