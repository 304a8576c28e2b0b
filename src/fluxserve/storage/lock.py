"""One writer per data directory: a lock that the system drops when its holder dies."""

import fcntl
import os
from pathlib import Path

from fluxserve.core.errors import StartupError


class DirectoryLock:
    """Held from `acquire` to `release`; the file names the holder's process id."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """StartupError naming the process that holds the directory."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(
                f"cannot write to {self._path.parent} ({error.strerror}): "
                "make it writable, or choose another directory with --data-dir"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StartupError(
                f"{self._path.parent} is in use by process {holder}: "
                "stop that one, or choose another directory with --data-dir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        # The file stays: removing it would let two processes lock two files of one name.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at `path` just now."""
    lock = DirectoryLock(path)
    if not path.exists():
        return False
    try:
        lock.acquire()
    except StartupError:
        return True
    lock.release()
    return False
