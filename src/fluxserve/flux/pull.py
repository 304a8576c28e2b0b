"""Download a model from a hub: licence shown, space checked, broken transfers resumed.

    what the hub lists -> room on the disk? -> licence accepted? -> file by file: name.HASH.part,
    resumed by byte range -> hash as published? -> name

The listing and the transfer itself (retries, ranges, redirects) are `huggingface_hub`'s; its own
downloader starts a broken file from zero in a new process, which 24 GB do not forgive.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fluxserve.flux.folder import PARTS
from fluxserve.flux.transfer import (
    Hub,
    Progress,
    PullError,
    RemoteFile,
    Transfer,
    matches,
    part_bytes,
)

# What a part needs of a repository; the same weights in other forms stay where they are.
SUFFIXES = (".json", ".txt", ".model", ".safetensors")
INDEX = "model_index.json"
RECORD = "pulled.json"  # what was downloaded, beside the files
SPARE_BYTES = 256 * 2**20  # room that has to stay free on the disk


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


def pull(
    hub: Hub,
    folder: Path,
    *,
    accept: Callable[[Licence], bool],
    report: Callable[[Progress], None] = lambda progress: None,
    patterns: Sequence[str] = (),
    without: Collection[str] = (),
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> Path:
    """Download a model into `folder` and return it; what is there already and sound stays.

    Takes the files of a diffusers folder, except of the parts in `without`, or with `patterns`
    those whose names match one. Broken off, it goes on where it stopped when called again. Raises
    PullError; its message is for the user.
    """
    with _explained(hub):
        info = HfApi(endpoint=hub.endpoint, token=hub.token or False).model_info(
            hub.repo, revision=hub.revision, files_metadata=True
        )
        files = _chosen(info, patterns, without)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            record = _read_record(folder)
            missing = [file for file in files if not _is_sound(folder, file, record)]
            _check_room(folder, missing, free_bytes)
            _ask(hub, info, folder, accept)
            transfer = Transfer(hub, info.sha or hub.revision, folder, files, missing, report)
            for file in missing:
                transfer.fetch(file)
                _write_record(folder, hub, info, files)
            _write_record(folder, hub, info, files)
    return folder


# --- what to download ---------------------------------------------------------------------------


def _chosen(info: ModelInfo, patterns: Sequence[str], without: Collection[str]) -> list[RemoteFile]:
    listed = [_remote(sibling) for sibling in info.siblings or ()]
    if patterns:
        chosen = [f for f in listed if any(fnmatch(f.name, pattern) for pattern in patterns)]
        if not chosen:
            raise PullError(f"{info.id}: no file matches {', '.join(patterns)}")
        return chosen
    if not any(file.name == INDEX for file in listed):
        raise PullError(f"{info.id}: no {INDEX}, so it is no model folder; name the files you want")
    parts = [part for part in PARTS if part not in without]
    return [file for file in listed if _belongs(PurePosixPath(file.name), parts)]


def _belongs(path: PurePosixPath, parts: Collection[str]) -> bool:
    if len(path.parts) == 1:
        return path.name == INDEX or path.name.upper().startswith("LICEN")
    return path.parts[0] in parts and path.suffix in SUFFIXES


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
    needed = sum(file.size_bytes - part_bytes(folder, file) for file in missing)
    free = free_bytes(folder)
    if missing and needed + SPARE_BYTES > free:
        raise PullError(
            f"{_gib(needed + SPARE_BYTES)} are needed on the disk of the model folder,"
            f" {_gib(free)} are free"
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _licence(info: ModelInfo) -> tuple[str, str | None]:
    """Its name and address, as the repository's card says."""
    card: Any = info.card_data  # one field a key of the card, all optional
    known = [str(getattr(card, key, None) or "") for key in ("license_name", "license")]
    link = str(getattr(card, "license_link", None) or "")
    return known[0] or known[1] or "unknown", link if link.startswith("http") else None


def _ask(hub: Hub, info: ModelInfo, folder: Path, accept: Callable[[Licence], bool]) -> None:
    """Show the licence, once a folder and licence name."""
    name, link = _licence(info)
    if _read_record(folder).get("licence") == name:
        return
    listed = [_remote(sibling) for sibling in info.siblings or ()]
    of_licence = [f for f in listed if "/" not in f.name and f.name.upper().startswith("LICEN")]
    text = None
    if of_licence:
        transfer = Transfer(hub, info.sha or hub.revision, folder, (), (), lambda progress: None)
        transfer.fetch(of_licence[0])
        text = (folder / of_licence[0].name).read_text(encoding="utf-8", errors="replace")
    licence = Licence(repo=hub.repo, name=name, url=link, text=text, is_gated=bool(info.gated))
    if not accept(licence):
        raise LicenceDeclinedError(f"{hub.repo}: its licence ({name}) was not accepted")


# --- what is there ------------------------------------------------------------------------------


def _is_sound(folder: Path, file: RemoteFile, record: Mapping[str, Any]) -> bool:
    """The file is there as published. A file unchanged since it was checked is not read again."""
    path = folder / file.name
    if not path.is_file():
        return False
    known = record.get("files", {}).get(file.name)
    if known == _entry(path, file):
        return True
    return matches(path, file)


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
    record = {
        "repo": hub.repo,
        "commit": info.sha,
        "licence": _licence(info)[0],
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
