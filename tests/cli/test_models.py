"""`fluxserve models`, `version`, `doctor` and `bench`."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fluxserve import __version__
from fluxserve.flux.folder import embedded_folder, inspect
from tests.cli.conftest import Cli
from tests.flux.folders import make_folder
from tests.flux.hub import FakeHub, serving
from tests.flux.test_singlefile import SPEC, published

REPO = "black-forest-labs/FLUX.1-schnell"
FILES = {
    "model_index.json": b"{}",
    "LICENSE.md": b"You may.",
    "transformer/model.safetensors": bytes(range(256)) * 400,
    "vae/config.json": b"{}",
    "assets/cat.png": b"a picture",
}


def hub(**more: object) -> FakeHub:
    return FakeHub(repo=REPO, files=dict(FILES), **more)  # type: ignore[arg-type]


def test_models_are_listed_with_who_serves_them(cli: Cli) -> None:
    lines = cli("models", "list").out.splitlines()
    row = next(line for line in lines if line.startswith("black-forest-labs/flux-kontext-dev "))
    assert row.split()[1] == "simulator"
    assert len(json.loads(cli("models", "list", "--json").out)) == len(lines) - 1


def test_a_model_is_shown_to_people_and_to_scripts(cli: Cli) -> None:
    text = cli("models", "show", "flux-kontext-dev").out
    for word in ("black-forest-labs/flux-kontext-dev", "28", "Non-Commercial", "16:9", "edit"):
        assert word in text
    card = json.loads(cli("models", "show", "flux-kontext-dev", "--json").out)
    assert card["defaults"]["num_steps"] == 28
    gone = cli("models", "show", "nothing")
    assert (gone.code, "no model named 'nothing'" in gone.complaint) == (1, True)


def test_a_pull_brings_what_a_model_folder_needs(cli: Cli, tmp_path: Path) -> None:
    place = tmp_path / "weights"
    with serving(hub()) as there:
        words = ("models", "pull", "flux-schnell", "--dir", str(place), "--endpoint", there.url)
        said = cli(*words, "--accept-license")
        assert (said.code, said.out.strip()) == (0, str(place))
        assert "under this licence: apache-2.0" in said.err
        assert f"engine.model_dir={place}" in said.err
        weights = place / "transformer" / "model.safetensors"
        assert weights.read_bytes() == FILES["transformer/model.safetensors"]
        assert not (place / "assets").exists()
        asked = len(there.asked)
        assert cli(*words, "--accept-license").code == 0
        assert len(there.asked) == asked + 1  # the listing; every file is there already


def test_a_published_file_completes_what_was_pulled_without_a_transformer(
    cli: Cli, tmp_path: Path
) -> None:
    whole = make_folder(embedded_folder(), tmp_path / "whole", "schnell")
    names = [path for path in whole.rglob("*") if path.is_file()]
    files = {path.relative_to(whole).as_posix(): path.read_bytes() for path in names}
    transformer = whole / "transformer" / "config.json"
    sizes = json.loads(transformer.read_text())
    spec = replace(
        SPEC,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=sizes["joint_attention_dim"],
        pooled_projection_dim=sizes["pooled_projection_dim"],
        guidance_embeds=False,
    )
    file, place = tmp_path / "flux1-schnell.safetensors", tmp_path / "model"
    save_file(published(spec), file)
    with serving(FakeHub(repo=REPO, files=files)) as there:
        words = ("models", "pull", REPO, "--dir", str(place), "--endpoint", there.url)
        said = cli(*words, "--accept-license", "--without", "transformer")
    assert (said.code, f"models install FILE {place}" in said.err) == (0, True)
    assert not (place / "transformer").exists()
    said = cli("models", "install", str(file), str(place))
    assert (said.code, said.out.strip()) == (0, str(place))
    assert f"engine.model_dir={place}" in said.err
    assert inspect(place).transformer == spec
    again = cli("models", "install", str(file), str(place))
    assert (again.code, again.complaint) == (
        1,
        "fluxserve: model: has a transformer already; take it away first",
    )


def test_an_install_that_cannot_be_says_why(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"a picture, not weights")
    said = cli("models", "install", str(tmp_path / "cat.png"), str(tmp_path))
    assert (said.code, "cat.png: no safetensors file" in said.complaint) == (1, True)
    said = cli("models", "install", str(tmp_path / "gone"), str(tmp_path))
    assert (said.code, "gone: cannot be read" in said.complaint) == (1, True)
    assert cli("models", "install", "one").code == 2


def test_a_single_file_for_a_model_folder_is_told_what_to_do(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "flux1-dev.safetensors"
    file.write_bytes(b"weights")
    monkeypatch.setenv("FLUXSERVE_SIMULATOR__ENABLED", "false")
    monkeypatch.setenv("FLUXSERVE_ENGINE__MODEL_DIR", str(file))
    said = cli("doctor")
    assert (said.code, "`fluxserve models install` makes it part of one" in said.out) == (1, True)


def test_a_pull_that_broke_off_is_finished_by_the_next_one(cli: Cli, tmp_path: Path) -> None:
    there = hub()
    with serving(there):
        words = ("models", "pull", REPO, "--dir", str(tmp_path / "w"), "--endpoint", there.url)
        there.spoil = {"transformer/model.safetensors"}
        said = cli(*words, "--accept-license")
        assert (said.code, "pull it again" in said.err) == (1, True)
        there.spoil = set()
        assert cli(*words).code == 0  # the licence was accepted the first time


def test_without_a_terminal_the_licence_has_to_be_accepted_by_flag(
    cli: Cli, tmp_path: Path
) -> None:
    with serving(hub()) as there:
        words = ("models", "pull", REPO, "--dir", str(tmp_path / "w"), "--endpoint", there.url)
        said = cli(*words)
    assert said.code == 1
    assert "--accept-license" in said.err
    assert not list((tmp_path / "w").rglob("*.safetensors"))


def test_at_a_terminal_the_licence_is_shown_and_asked_for(tmp_path: Path) -> None:
    with serving(hub()) as there:
        words = ("models", "pull", REPO, "--dir", str(tmp_path / "w"), "--endpoint", there.url)
        for answer, code in (("n", 1), ("y", 0)):
            shown, ended = at_a_terminal(answer, *words)
            assert "You may." in shown
            assert ended == code, shown
    assert (tmp_path / "w" / "transformer" / "model.safetensors").exists()


def at_a_terminal(answer: str, *words: str) -> tuple[str, int]:
    """What a command shows on a terminal where somebody types `answer` when asked."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fluxserve", *words]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    is_answered = False
    try:
        while part := os.read(ours, 4096):
            shown += part
            if b"accept it?" in shown and not is_answered:
                os.write(ours, f"{answer}\n".encode())
                is_answered = True
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return shown.decode(), process.wait(20)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nothing", "no model named 'nothing'"),
        ("flux-kontext-pro", "has no weights to download"),
        ("somebody/else", "somebody/else: the hub answered 404"),
    ],
)
def test_a_pull_that_cannot_be_says_why(cli: Cli, name: str, part: str, tmp_path: Path) -> None:
    with serving(hub()) as there:
        words = ("models", "pull", name, "--dir", str(tmp_path / "w"), "--endpoint", there.url)
        said = cli(*words, "--accept-license")
    assert (said.code, part in said.complaint) == (1, True)


def test_a_gated_model_is_pulled_with_the_token_of_a_variable(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = hub(token="hf_secret", gated=True)
    with serving(there):
        words = ("models", "pull", REPO, "--dir", str(tmp_path / "w"), "--endpoint", there.url)
        said = cli(*words, "--accept-license")
        assert (said.code, "accept its licence on its page" in said.complaint) == (1, True)
        empty = cli(*words, "--accept-license", "--token-env", "MY_TOKEN")
        assert (empty.code, "MY_TOKEN" in empty.complaint) == (3, True)
        monkeypatch.setenv("MY_TOKEN", "hf_secret")
        said = cli(*words, "--accept-license", "--token-env", "MY_TOKEN")
    assert said.code == 0, said.err
    assert "accepted on the hub's page as well" in said.err
    assert "hf_secret" not in said.out + said.err


def test_the_version_is_told(cli: Cli) -> None:
    assert cli("version").out == f"fluxserve {__version__}\n"
    assert cli("--version").out == f"fluxserve {__version__}\n"


def test_the_doctor_finds_what_is_wrong(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLUXSERVE_SIMULATOR__ENABLED", "false")
    well = cli("doctor")
    assert (well.code, "* is served by embedded" in well.out) == (0, True)
    assert "models pull" in well.out
    monkeypatch.setenv("FLUXSERVE_ENGINE__MODEL_DIR", str(tmp_path / "gone"))
    ill = cli("doctor")
    assert (ill.code, "FAIL" in ill.out) == (1, True)
    assert "engine.model_dir: gone: no such model folder" in ill.out
    assert ill.out.splitlines()[-1].startswith("Put right what failed")


def test_a_measurement_says_what_it_measured(cli: Cli) -> None:
    words = ("bench", "--count", "2", "--together", "2", "-m", "flux-dev")
    text = cli(*words).out
    assert "2 at once" in text
    told = json.loads(cli(*words, "--json").out)
    alone = told["runs"]["one at a time"]
    assert alone["pictures"] == 2
    assert 0.05 < alone["seconds_least"] <= alone["seconds_each"] <= alone["seconds_most"]
    assert told["steps"] == 28


def test_shells_complete_commands(tmp_path: Path) -> None:
    env = {**os.environ, "_FLUXSERVE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    program = Path(sys.executable).with_name("fluxserve")
    told = subprocess.run(
        [program], env={**env, "COMP_WORDS": "fluxserve ge"}, capture_output=True, text=True
    )
    assert told.stdout.split() == ["generate"]
