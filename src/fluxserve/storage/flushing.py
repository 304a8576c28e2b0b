"""Pushing files and names to the disk, so that a power cut cannot take them back."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Flush one file's bytes, or one directory's names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_down_from(root: Path, path: Path) -> None:
    """Flush a new file and every name on the way to it from `root`, one of its parents."""
    flush(path)
    while path != root:
        path = path.parent
        flush(path)
