"""One file from a hub to the disk: resumed by byte range, in place only when its hash is right."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, cast

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

CHUNK_BYTES = 2**20
RETRIES = 3  # of a file that ends early or breaks off; the transfer retries five times by itself


class PullError(Exception):
    """The model cannot be downloaded; the message says why and what to do."""


class Progress(NamedTuple):
    """How far a download is."""

    file: str
    done_bytes: int  # of all files, those that were there already included
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as the hub lists it."""

    name: str
    size_bytes: int
    sha256: str | None  # large files
    git_sha1: str | None  # small files: of b"blob SIZE\0" and the content

    @property
    def mark(self) -> str:
        """Tells versions of the file apart."""
        return (self.sha256 or self.git_sha1 or "unknown")[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Where to download from, and as whom."""

    repo: str
    revision: str = "main"
    token: str | None = None
    endpoint: str | None = None  # None: the public hub


class _Silent:
    """The transfer insists on a bar; ours is drawn elsewhere."""

    def __init__(self, **kwargs: object) -> None:
        self.shown = kwargs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: int) -> None:
        pass


class _Counted:
    """A file that says how much of it is written."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file, self._report = file, report

    def write(self, chunk: bytes) -> int:
        written = self._file.write(chunk)
        self._report(self._file.tell())
        return written

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def truncate(self) -> int:
        return self._file.truncate()

    def tell(self) -> int:
        return self._file.tell()


class Transfer:
    """Files from one revision into one folder."""

    def __init__(
        self,
        hub: Hub,
        commit: str,
        folder: Path,
        files: Sequence[RemoteFile],
        missing: Sequence[RemoteFile],
        report: Callable[[Progress], None],
    ) -> None:
        self._hub, self._commit, self._folder, self._report = hub, commit, folder, report
        self._headers = {"user-agent": "fluxserve"}
        if hub.token:
            self._headers["authorization"] = f"Bearer {hub.token}"
        self._total = sum(file.size_bytes for file in files)
        self._done = self._total - sum(file.size_bytes for file in missing)

    def fetch(self, file: RemoteFile) -> None:
        """Download, check and put in place; PullError when it is not what the hub says."""
        part, target = part_of(self._folder, file), self._folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(RETRIES + 1):
            try:
                self._read(file, part)
                break
            except (OSError, httpx2.TransportError) as error:
                # A transfer that broke off goes on from the bytes that came; a refusal stays one,
                # and so does what the disk says (only that has a number).
                is_final = isinstance(error, HfHubHTTPError) or getattr(error, "errno", None)
                if is_final or attempt == RETRIES:
                    raise
        if not matches(part, file):
            part.unlink()
            raise PullError(f"{file.name}: not what the hub published; deleted, pull it again")
        part.replace(target)
        self._done += file.size_bytes

    def _read(self, file: RemoteFile, part: Path) -> None:
        url = hf_hub_url(
            self._hub.repo, file.name, revision=self._commit, endpoint=self._hub.endpoint
        )
        there = part_bytes(self._folder, file)
        if there == file.size_bytes and part.exists():
            return
        with part.open("ab") as opened:
            opened.truncate(there)
            counted = _Counted(opened, lambda size: self._tell(file, size))
            http_get(
                url,
                cast(BinaryIO, counted),
                resume_size=there,
                headers=dict(self._headers),
                expected_size=file.size_bytes,
                tqdm_class=cast(Any, _Silent),
            )

    def _tell(self, file: RemoteFile, size_bytes: int) -> None:
        self._report(Progress(file.name, self._done + size_bytes, self._total))


def part_of(folder: Path, file: RemoteFile) -> Path:
    """Where the bytes go until all of them are there; another version has another name."""
    target = folder / file.name
    return target.with_name(f"{target.name}.{file.mark}.part")


def part_bytes(folder: Path, file: RemoteFile) -> int:
    part = part_of(folder, file)
    size = part.stat().st_size if part.exists() else 0
    return size if size <= file.size_bytes else 0


def matches(path: Path, file: RemoteFile) -> bool:
    """Length and hash are as published."""
    size = path.stat().st_size
    if size != file.size_bytes:
        return False
    if file.sha256 is not None:
        digest, wanted = hashlib.sha256(), file.sha256
    elif file.git_sha1 is not None:
        digest, wanted = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), file.git_sha1
    else:
        raise PullError(f"{file.name}: the hub publishes no hash for it")
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == wanted.lower()
