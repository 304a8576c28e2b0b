"""`fluxserve generate` and `edit`: files, names, JSON, and what is said when it cannot be done."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.cli.conftest import Cli
from tests.flux.hub import FakeHub, serving
from tests.server import ServerProcess

Start = Callable[..., ServerProcess]


def test_a_picture_is_written_where_it_was_asked_for(cli: Cli) -> None:
    said = cli("generate", "a fox", "-o", "fox.webp", "--size", "320x256", "--seed", "7")
    assert (said.code, said.out, said.err) == (0, "fox.webp\n", "")
    with Image.open("fox.webp") as image:
        assert (image.format, image.size) == ("WEBP", (320, 256))


def test_several_pictures_are_numbered_and_named_by_seed_without_a_name(cli: Cli) -> None:
    said = cli("generate", "a fox", "-o", "fox.png", "--n", "2", "--size", "256x256")
    assert said.out.split() == ["fox-0.png", "fox-1.png"]
    assert all(Path(name).exists() for name in said.out.split())
    one = ("generate", "a fox", "--seed", "9", "--size", "256x256")
    assert cli(*one).out == "fluxserve-9.png\n"
    assert cli(*one).out == "fluxserve-9-1.png\n"


def test_an_edit_takes_pictures_and_then_the_instruction(cli: Cli, photo: str) -> None:
    said = cli("edit", photo, "make it blue", "-o", "blue.jpg", "--json")
    told = json.loads(said.out)
    assert told["request"]["task"] == "edit"
    assert told["request"]["prompt"] == "make it blue"
    assert len(told["request"]["images"]) == 1
    assert told["files"] == ["blue.jpg"]
    with Image.open("blue.jpg") as image:
        assert image.format == "JPEG"
        assert image.width * 2 == pytest.approx(image.height * 3, rel=0.02)


def test_a_preview_file_shows_the_picture_before_it_is_done(cli: Cli) -> None:
    assert cli("generate", "a fox", "-o", "fox.png", "--preview", "growing.png").code == 0
    with Image.open("growing.png") as image:
        image.load()


def test_the_same_seed_gives_the_same_file_in_process_and_from_a_server(
    cli: Cli, start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", "a fox", "--seed", "5", "--size", "256x256", "-m", "flux-dev", "-o")
    assert cli(*words, "here.png").code == 0
    server = start_server()
    assert cli(*words, "there.png", "--server", server.url).code == 0
    assert Path("here.png").read_bytes() == Path("there.png").read_bytes()
    monkeypatch.setenv("FLUXSERVE_SERVER", server.url + "/")
    assert cli(*words, "told.png").code == 0
    assert len(httpx.get(f"{server.url}/fluxserve/v1/predictions").json()["results"]) == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("edit", "gone.jpg", "make it blue"), "gone.jpg cannot be read: No such file"),
        (("edit", ".", "make it blue"), ". cannot be read: Is a directory"),
        (("edit", "poem.txt", "make it blue"), "poem.txt: the file is something else, not a JPEG"),
        (("generate", "a fox", "-m", "nobody/nothing"), "no model named 'nobody/nothing'"),
        (("generate", ""), "prompt"),
        (("generate", "a fox", "--steps", "5000"), "num_steps"),
        (("generate", "a fox", "--guidance", "-5"), "guidance"),
        (("generate", "a fox", "-o", "no/such/folder/a.png"), "no such folder"),
        (("generate", "a fox", "--server", "http://127.0.0.1:9"), "does not answer"),
        (("generate", "a fox", "--server", "127.0.0.1:9"), "http://HOST:PORT"),
        (("generate", "a fox", "--server", "http://[::1"), "is not a URL"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    cli: Cli, words: tuple[str, ...], part: str
) -> None:
    Path("poem.txt").write_text("roses are red")
    said = cli(*words)
    assert said.code == 1
    assert said.complaint.startswith("fluxserve: ")
    assert part in said.complaint
    assert said.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ("generate",),
        ("generate", "a fox", "-o", "fox.tiff"),
        ("generate", "a fox", "--size", "big"),
        ("generate", "a fox", "--n", "0"),
        ("generate", "a fox", "--steps", "many"),
        ("edit", "make it blue"),
        ("edit", "a.png", "make it blue", "--no-such-flag"),
        ("paint", "a fox"),
    ],
)
def test_wrong_use_ends_with_2(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli(*words).code == 2


def test_a_refused_start_ends_with_3(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_SIMULATOR__SPEED", "3")
    said = cli("generate", "a fox")
    assert (said.code, "simulator.speed" in said.complaint) == (3, True)


def test_a_failed_run_says_why(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_SIMULATOR__OUTCOME", "fail")
    said = cli("generate", "a fox", "-o", "fox.png")
    assert said.complaint == "fluxserve: no picture: the simulator was told to fail"
    assert (said.code, Path("fox.png").exists()) == (1, False)


def test_a_stranger_behind_the_address_is_recognised(cli: Cli) -> None:
    with serving(FakeHub(repo="somebody/else", files={})) as stranger:
        said = cli("edit", __file__, "a fox", "--server", stranger.url)
    assert (said.code, "is it a fluxserve server?" in said.complaint) == (1, True)


def test_a_key_is_needed_and_taken(cli: Cli, start_server: Start, tmp_path: Path) -> None:
    server = start_server()
    made = cli("keys", "create", "--data-dir", str(tmp_path / "server"))
    key = made.out.splitlines()[-1]
    words = ("generate", "a fox", "--size", "256x256", "-o", "fox.png", "--server", server.url)
    assert "key" in cli(*words).complaint
    assert cli(*words, "--key", key).code == 0


def hear_interrupts() -> None:
    """A shell's background job has SIGINT ignored, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_who_waits_sees_the_place_in_the_queue_and_the_time_left(start_server: Start) -> None:
    server = start_server(
        FLUXSERVE_SIMULATOR__SECONDS="3",
        FLUXSERVE_SIMULATOR__STEPS="30",
        FLUXSERVE_SIMULATOR__CONCURRENCY="1",
    )
    for _ in range(2):
        url = f"{server.url}/fluxserve/v1/predictions"
        assert httpx.post(url, json={"model": "flux-dev", "prompt": "a fox"}).is_success
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "fluxserve", "generate", "a fox", "--server", server.url]
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    while b"before this one" not in shown or b"s left" not in shown:
        shown += os.read(ours, 4096)
    process.kill()
    process.wait()
    os.close(ours)


def test_ctrl_c_cancels_the_prediction_and_ends_with_130(start_server: Start) -> None:
    server = start_server(FLUXSERVE_SIMULATOR__SECONDS="60", FLUXSERVE_SIMULATOR__STEPS="600")
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "fluxserve", "generate", "a fox", "--server", server.url]
    process = subprocess.Popen(
        words,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    os.close(theirs)
    shown = b""
    while b"/600" not in shown:  # the bar: a terminal is there
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while os.read(ours, 4096):
            pass
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(20) == 130
    rows = httpx.get(f"{server.url}/fluxserve/v1/predictions").json()["results"]
    assert [row["status"] for row in rows] == ["canceled"]
