"""Download a model from a hub: licence shown, space checked, resumed where it stopped, hashes checked.

    what the hub lists -> licence accepted? -> room on the disk? -> file by file: name.HASH.part,
    resumed by byte range -> hash as published? -> name

The listing and the transfer itself (retries, ranges, redirects) are `huggingface_hub`'s; its own
downloader starts a broken file from zero in a new process, which 24 GB do not forgive.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, ModelInfo, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

# What a model folder needs of a repository; the same weights in other forms stay where they are.
PARTS = (
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae",
)  # fmt: skip
SUFFIXES = (".json", ".txt", ".model", ".safetensors")
INDEX = "model_index.json"
RECORD = "pulled.json"  # what was downloaded, beside the files
SPARE_BYTES = 256 * 2**20  # room that has to stay free on the disk
CHUNK_BYTES = 2**20
RETRIES = 3  # of a file that ends early or breaks off; the transfer retries five times by itself


class PullError(Exception):
    """The model cannot be downloaded; the message says why and what to do."""


class LicenceDeclinedError(PullError):
    """The licence was shown and not accepted; nothing was downloaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """What the owner of a repository asks for."""

    repo: str
    name: str  # as the repository says, "unknown" where it does not
    url: str | None
    text: str | None  # of its licence file
    is_gated: bool  # it has to be accepted on the hub as well, with the account of the token


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


def pull(
    hub: Hub,
    folder: Path,
    *,
    accept: Callable[[Licence], bool],
    report: Callable[[Progress], None] = lambda progress: None,
    patterns: Sequence[str] = (),
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> Path:
    """Download a model into `folder` and return it; what is there already and sound stays.

    Takes the files of a diffusers folder, or with `patterns` those whose names match one. Broken off,
    it goes on where it stopped when called again. Raises PullError, whose message is for the user.
    """
    with _explained(hub):
        info = HfApi(endpoint=hub.endpoint, token=hub.token or False).model_info(
            hub.repo, revision=hub.revision, files_metadata=True
        )
        files = _chosen(info, patterns)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            record = _read_record(folder)
            missing = [file for file in files if not _is_sound(folder, file, record)]
            _check_room(folder, missing, free_bytes)
            _ask(hub, info, folder, accept)
            transfer = _Transfer(hub, info.sha or hub.revision, folder, files, missing, report)
            for file in missing:
                transfer.fetch(file)
                _write_record(folder, hub, info, files)
            _write_record(folder, hub, info, files)
    return folder


# --- what to download ---------------------------------------------------------------------------


def _chosen(info: ModelInfo, patterns: Sequence[str]) -> list[RemoteFile]:
    listed = [_remote(sibling) for sibling in info.siblings or ()]
    if patterns:
        chosen = [f for f in listed if any(fnmatch(f.name, pattern) for pattern in patterns)]
        if not chosen:
            raise PullError(f"{info.id}: no file matches {', '.join(patterns)}")
        return chosen
    if not any(file.name == INDEX for file in listed):
        raise PullError(f"{info.id}: no {INDEX}, so it is no model folder; name the files you want")
    return [file for file in listed if _belongs(PurePosixPath(file.name))]


def _belongs(path: PurePosixPath) -> bool:
    if len(path.parts) == 1:
        return path.name == INDEX or path.name.upper().startswith("LICEN")
    return path.parts[0] in PARTS and path.suffix in SUFFIXES


def _remote(sibling: Any) -> RemoteFile:
    name = str(sibling.rfilename)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise PullError(f"the hub lists a file outside of the repository: {name}")
    if sibling.size is None:
        raise PullError(f"{name}: the hub does not say how long it is")
    return RemoteFile(
        name=name,
        size_bytes=int(sibling.size),
        sha256=sibling.lfs.sha256 if sibling.lfs else None,
        git_sha1=None if sibling.lfs else sibling.blob_id,
    )


def _check_room(
    folder: Path, missing: Sequence[RemoteFile], free_bytes: Callable[[Path], int]
) -> None:
    needed = sum(file.size_bytes - _part_bytes(folder, file) for file in missing)
    free = free_bytes(folder)
    if missing and needed + SPARE_BYTES > free:
        raise PullError(
            f"{_gib(needed + SPARE_BYTES)} are needed on the disk of the model folder,"
            f" {_gib(free)} are free"
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _ask(hub: Hub, info: ModelInfo, folder: Path, accept: Callable[[Licence], bool]) -> None:
    """Show the licence, once a folder and licence name."""
    card: Mapping[str, Any] = info.card_data.to_dict() if info.card_data else {}
    name = str(card.get("license_name") or card.get("license") or "unknown")
    if _read_record(folder).get("licence") == name:
        return
    listed = [_remote(sibling) for sibling in info.siblings or ()]
    of_licence = [f for f in listed if "/" not in f.name and f.name.upper().startswith("LICEN")]
    text = None
    if of_licence:
        transfer = _Transfer(hub, info.sha or hub.revision, folder, (), (), lambda progress: None)
        transfer.fetch(of_licence[0])
        text = (folder / of_licence[0].name).read_text(encoding="utf-8", errors="replace")
    link = card.get("license_link")
    url = str(link) if link and str(link).startswith("http") else None
    licence = Licence(repo=hub.repo, name=name, url=url, text=text, is_gated=bool(info.gated))
    if not accept(licence):
        raise LicenceDeclinedError(f"{hub.repo}: its licence ({name}) was not accepted")


# --- one file -----------------------------------------------------------------------------------


class _Silent(tqdm):  # type: ignore[type-arg]
    """The transfer insists on a bar; ours is drawn elsewhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)
        super().__init__(*args, **{**kwargs, "disable": True})


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


class _Transfer:
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
        self._headers = build_hf_headers(token=hub.token or False)
        self._total = sum(file.size_bytes for file in files)
        self._done = self._total - sum(file.size_bytes for file in missing)

    def fetch(self, file: RemoteFile) -> None:
        """Download, check and put in place; PullError when it is not what the hub says."""
        part, target = _part(self._folder, file), self._folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(RETRIES + 1):
            try:
                self._read(file, part)
                break
            except (OSError, httpx2.TransportError) as error:
                # A refusal stays one; a transfer that broke off goes on from the bytes that came.
                if isinstance(error, HfHubHTTPError) or attempt == RETRIES:
                    raise
        if not _matches(part, file):
            part.unlink()
            raise PullError(f"{file.name}: not what the hub published; deleted, pull it again")
        part.replace(target)
        self._done += file.size_bytes

    def _read(self, file: RemoteFile, part: Path) -> None:
        url = hf_hub_url(
            self._hub.repo, file.name, revision=self._commit, endpoint=self._hub.endpoint
        )
        there = _part_bytes(self._folder, file)
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
                tqdm_class=_Silent,
            )

    def _tell(self, file: RemoteFile, size_bytes: int) -> None:
        self._report(Progress(file.name, self._done + size_bytes, self._total))


def _part(folder: Path, file: RemoteFile) -> Path:
    """Where the bytes go until all of them are there; another version has another name."""
    target = folder / file.name
    return target.with_name(f"{target.name}.{file.mark}.part")


def _part_bytes(folder: Path, file: RemoteFile) -> int:
    part = _part(folder, file)
    size = part.stat().st_size if part.exists() else 0
    return size if size <= file.size_bytes else 0


def _matches(path: Path, file: RemoteFile) -> bool:
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


# --- what is there ------------------------------------------------------------------------------


def _is_sound(folder: Path, file: RemoteFile, record: Mapping[str, Any]) -> bool:
    """The file is there as published. A file unchanged since it was checked is not read again."""
    path = folder / file.name
    if not path.is_file():
        return False
    known = record.get("files", {}).get(file.name)
    if known == _entry(path, file):
        return True
    return _matches(path, file)


def _entry(path: Path, file: RemoteFile) -> Mapping[str, str | int]:
    found = path.stat()
    return {"hash": file.sha256 or file.git_sha1 or "", "bytes": found.st_size,
            "changed_ns": found.st_mtime_ns}  # fmt: skip


def _read_record(folder: Path) -> Mapping[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(folder: Path, hub: Hub, info: ModelInfo, files: Sequence[RemoteFile]) -> None:
    card: Mapping[str, Any] = info.card_data.to_dict() if info.card_data else {}
    record = {
        "repo": hub.repo,
        "commit": info.sha,
        "licence": str(card.get("license_name") or card.get("license") or "unknown"),
        "files": {
            file.name: _entry(folder / file.name, file)
            for file in files
            if (folder / file.name).is_file()
        },
    }
    fresh = folder / f"{RECORD}.new"
    fresh.write_text(json.dumps(record, indent=1), encoding="utf-8")
    fresh.replace(folder / RECORD)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".pull.lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise PullError("another download is writing to the same folder; wait for it") from None


@contextmanager
def _explained(hub: Hub) -> Iterator[None]:
    """The hub's refusals and the network's troubles, in words that help."""
    try:
        yield
    except GatedRepoError as error:
        how = "" if hub.token else ", and pass a token of it"
        raise PullError(
            f"{hub.repo} is gated: accept its licence on its page with your account{how}"
        ) from error
    except RevisionNotFoundError as error:
        raise PullError(f"{hub.repo}: no revision {hub.revision}") from error
    except RepositoryNotFoundError as error:
        how = "its token may not see it" if hub.token else "or it needs a token"
        raise PullError(f"{hub.repo}: no such repository, {how}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise PullError(f"{hub.repo}: the hub refused the token") from error
        raise PullError(f"{hub.repo}: the hub answered {status}; try again later") from error
    except httpx2.HTTPError as error:
        raise PullError(
            f"{hub.repo}: the hub could not be reached ({type(error).__name__}); run it again,"
            " it goes on where it stopped"
        ) from error
    except OSError as error:
        raise PullError(f"{hub.repo}: the download broke off: {error.strerror or error}") from error
