"""Downloading a model: what it takes, how it resumes, what it refuses, what it says."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve.flux import transfer
from fluxserve.flux.pull import RECORD, SPARE_BYTES, Licence, LicenceDeclinedError, pull
from fluxserve.flux.transfer import Hub, Progress, PullError
from tests.flux.hub import COMMIT, FakeHub, serving

REPO = "black-forest-labs/FLUX.1-Kontext-dev"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
TEXT = "The licence, word by word."


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    # The transfer writes 10 MB at a time; these files are smaller.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    draw = random.Random(0)
    files = {
        "model_index.json": b'{"_class_name": "FluxKontextPipeline"}',
        "LICENSE.md": TEXT.encode(),
        "README.md": b"not needed",
        "flux1-kontext-dev.safetensors": b"the same weights again",
        "transformer/config.json": b"{}",
        WEIGHTS: draw.randbytes(3_000_000),
        "vae/diffusion_pytorch_model.safetensors": draw.randbytes(100_000),
        "tokenizer/merges.txt": b"a b\n",
        "tokenizer_2/spiece.model": b"pieces",
        "text_encoder/flax_model.msgpack": b"another form",
    }
    card = {"license": "other", "license_name": "flux-1-dev-non-commercial-license",
            "license_link": "https://example.test/licence"}  # fmt: skip
    with serving(FakeHub(REPO, files, card)) as found:
        yield found


def source(hub: FakeHub, **said: str) -> Hub:
    return replace(Hub(repo=hub.repo, endpoint=hub.url), **said)


def yes(licence: Licence) -> bool:
    return True


def stop_at(size_bytes: int) -> object:
    def report(progress: Progress) -> None:
        if progress.file == WEIGHTS and progress.done_bytes > size_bytes:
            raise KeyboardInterrupt

    return report


def asked_for(hub: FakeHub, name: str) -> list[str | None]:
    """The ranges of the requests for a file."""
    return [range_ for path, range_, _ in hub.asked if path.endswith(name)]


def test_a_model_folder_is_taken_without_what_it_does_not_need(
    hub: FakeHub, tmp_path: Path
) -> None:
    folder = pull(source(hub), tmp_path / "model", accept=yes)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    unneeded = {"README.md", "flux1-kontext-dev.safetensors", "text_encoder/flax_model.msgpack"}
    wanted = {name: data for name, data in hub.files.items() if name not in unneeded}
    assert {name: data for name, data in found.items() if name in hub.files} == wanted
    assert not [name for name in found if name.endswith(".part")]
    record = json.loads(found[RECORD])
    assert (record["repo"], record["commit"]) == (REPO, COMMIT)


def test_parts_can_be_left_out_and_fetched_later(hub: FakeHub, tmp_path: Path) -> None:
    pull(source(hub), tmp_path, accept=yes, without=("transformer", "tokenizer_2"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["tokenizer", "vae"]
    pull(source(hub), tmp_path, accept=yes)
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_named_files_are_taken_alone(hub: FakeHub, tmp_path: Path) -> None:
    pull(source(hub), tmp_path, accept=yes, patterns=["flux1-*.safetensors"])
    assert {p.name for p in tmp_path.iterdir() if p.suffix == ".safetensors"} == {
        "flux1-kontext-dev.safetensors"
    }
    with pytest.raises(PullError, match=r"no file matches \*\.gguf"):
        pull(source(hub), tmp_path, accept=yes, patterns=["*.gguf"])


def test_the_licence_is_shown_before_the_weights_come(hub: FakeHub, tmp_path: Path) -> None:
    shown: list[Licence] = []

    def no(licence: Licence) -> bool:
        shown.append(licence)
        return False

    with pytest.raises(LicenceDeclinedError, match="flux-1-dev-non-commercial-license"):
        pull(source(hub), tmp_path, accept=no)
    assert shown == [
        Licence(repo=REPO, name="flux-1-dev-non-commercial-license",
                url="https://example.test/licence", text=TEXT, is_gated=False)
    ]  # fmt: skip
    assert not asked_for(hub, WEIGHTS)


def test_an_accepted_licence_is_not_shown_again(hub: FakeHub, tmp_path: Path) -> None:
    pull(source(hub), tmp_path, accept=yes)

    def never(licence: Licence) -> bool:
        raise AssertionError

    pull(source(hub), tmp_path, accept=never)
    hub.card["license_name"] = "another"
    with pytest.raises(LicenceDeclinedError):
        pull(source(hub), tmp_path, accept=lambda licence: False)


def test_a_second_pull_downloads_nothing(hub: FakeHub, tmp_path: Path) -> None:
    pull(source(hub), tmp_path, accept=yes)
    hub.asked.clear()
    pull(source(hub), tmp_path, accept=yes)
    assert [path for path, _, _ in hub.asked if "/resolve/" in path] == []


def test_an_interrupted_pull_goes_on_in_the_next_process(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pull(source(hub), tmp_path, accept=yes, report=stop_at(1_000_000))  # type: ignore[arg-type]
    part = next(tmp_path.glob("transformer/*.part"))
    there = part.stat().st_size
    assert there > 0
    assert not (tmp_path / WEIGHTS).exists()
    hub.asked.clear()
    pull(source(hub), tmp_path, accept=yes)
    assert asked_for(hub, WEIGHTS) == [f"bytes={there}-"]
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_dropped_connection_goes_on_from_the_bytes_that_came(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.break_after, hub.breaks = {WEIGHTS: 1_000_000}, 1
    pull(source(hub), tmp_path, accept=yes)
    assert asked_for(hub, WEIGHTS) == [None, f"bytes={1_000_000 // 2**16 * 2**16}-"]
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_server_without_ranges_is_read_from_the_start(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pull(source(hub), tmp_path, accept=yes, report=stop_at(1_000_000))  # type: ignore[arg-type]
    hub.ignores_ranges = True
    pull(source(hub), tmp_path, accept=yes)
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_file_that_changed_upstream_is_not_joined_to_its_old_half(
    hub: FakeHub, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        pull(source(hub), tmp_path, accept=yes, report=stop_at(1_000_000))  # type: ignore[arg-type]
    hub.files[WEIGHTS] = hub.files[WEIGHTS][::-1]
    pull(source(hub), tmp_path, accept=yes)
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer/merges.txt"])
def test_bytes_that_are_not_the_published_ones_are_thrown_away(
    hub: FakeHub, tmp_path: Path, name: str
) -> None:
    hub.spoil = {name}
    with pytest.raises(PullError, match="not what the hub published"):
        pull(source(hub), tmp_path, accept=yes)
    assert not (tmp_path / name).exists()
    hub.spoil = set()
    pull(source(hub), tmp_path, accept=yes)
    assert (tmp_path / name).read_bytes() == hub.files[name]


def test_a_file_damaged_on_the_disk_is_downloaded_again(hub: FakeHub, tmp_path: Path) -> None:
    pull(source(hub), tmp_path, accept=yes)
    spoiled = tmp_path / WEIGHTS
    spoiled.write_bytes(bytes(len(hub.files[WEIGHTS])))
    pull(source(hub), tmp_path, accept=yes)
    assert spoiled.read_bytes() == hub.files[WEIGHTS]


def test_progress_grows_to_the_size_of_all_files(hub: FakeHub, tmp_path: Path) -> None:
    seen: list[Progress] = []
    pull(source(hub), tmp_path, accept=yes, report=seen.append)
    done = [progress.done_bytes for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes > 3_000_000


def test_a_full_disk_is_told_before_the_download(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(PullError, match=r"0\.3 GiB are needed .* 0\.2 GiB are free"):
        pull(source(hub), tmp_path, accept=yes, free_bytes=lambda path: SPARE_BYTES)
    assert not asked_for(hub, WEIGHTS)


def test_what_is_there_needs_no_room_again(hub: FakeHub, tmp_path: Path) -> None:
    pull(source(hub), tmp_path, accept=yes)
    pull(source(hub), tmp_path, accept=yes, free_bytes=lambda path: 0)


def test_a_gated_repository_says_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    hub.token, hub.gated = "right", True
    with pytest.raises(PullError, match=r"is gated: accept its licence .* pass a token"):
        pull(source(hub), tmp_path, accept=yes)
    with pytest.raises(PullError, match="no such repository, its token may not see it"):
        pull(source(hub, token="wrong"), tmp_path, accept=yes)
    told = []

    def granted(licence: Licence) -> bool:
        told.append(licence.is_gated)
        return True

    pull(source(hub, token="right"), tmp_path, accept=granted)
    assert told == [True]


def test_a_token_that_is_not_granted_yet_is_told_apart(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(PullError, match=r"accept its licence on its page with your account$"):
        pull(source(hub, token="mine"), tmp_path, accept=yes)


def test_the_token_stays_with_the_hub_when_files_lie_elsewhere(
    hub: FakeHub, tmp_path: Path
) -> None:
    with serving(FakeHub(REPO, hub.files)) as elsewhere:
        hub.token, hub.content_host = "secret", elsewhere.url
        pull(source(hub, token="secret"), tmp_path, accept=yes)
        assert {token for _, _, token in hub.asked} == {"Bearer secret"}
        assert {token for _, _, token in elsewhere.asked} == {None}
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_unknown_revisions_and_repositories_are_named(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(PullError, match="no revision v9"):
        pull(source(hub, revision="v9"), tmp_path, accept=yes)
    hub.token = "right"
    with pytest.raises(PullError, match="no such repository, or it needs a token"):
        pull(source(hub), tmp_path, accept=yes)


def test_a_hub_in_trouble_is_told(hub: FakeHub, tmp_path: Path) -> None:
    hub.status = 500
    with pytest.raises(PullError, match="the hub answered 500"):
        pull(source(hub), tmp_path, accept=yes)


def test_no_hub_at_all_is_told(tmp_path: Path) -> None:
    with serving(FakeHub(REPO, {})) as gone:
        nowhere = source(gone)
    with pytest.raises(PullError, match="could not be reached"):
        pull(nowhere, tmp_path, accept=yes)


def test_a_repository_that_is_no_model_folder_asks_for_names(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["model_index.json"]
    with pytest.raises(PullError, match=r"no model_index\.json"):
        pull(source(hub), tmp_path, accept=yes)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "transformer/..\\x.json"])
def test_a_listing_that_points_outside_is_refused(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.files[name] = b"{}"
    with pytest.raises(PullError, match="outside of the repository"):
        pull(source(hub), tmp_path, accept=yes)


def test_two_pulls_into_one_folder_do_not_mix(hub: FakeHub, tmp_path: Path) -> None:
    tried: list[Progress] = []

    def meanwhile(progress: Progress) -> None:
        if tried:
            return
        tried.append(progress)
        with pytest.raises(PullError, match="another download"):
            pull(source(hub), tmp_path, accept=yes)

    pull(source(hub), tmp_path, accept=yes, report=meanwhile)
    assert tried


def test_a_transfer_that_never_gets_through_ends(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RETRIES", 0)
    hub.files["vae/config.json"] = b""
    listed = hub.files.pop(WEIGHTS)
    hub.files[WEIGHTS] = listed
    real = hub.listing

    def shorter() -> dict[str, object]:
        listing = real()
        hub.files[WEIGHTS] = listed[:1000]  # what is served then is shorter than what was listed
        return listing

    monkeypatch.setattr(hub, "listing", shorter)
    with pytest.raises(PullError, match="broke off"):
        pull(source(hub), tmp_path, accept=yes)
