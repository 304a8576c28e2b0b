"""What goes wrong around a command is said in one sentence, or outlived."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fluxserve.core.errors import StartupError
from fluxserve.ops import logs
from fluxserve.storage.lock import DirectoryLock
from tests.cli.conftest import Cli

HERE = "/fluxserve/v1/predictions"


class Cutting(BaseHTTPRequestHandler):
    """Cuts the stream of events, then one answer, and then tells that the picture is done."""

    asked_for: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._tell({"id": "p1", "status": "queued", "finished_at": None})

    def do_GET(self) -> None:
        self.asked_for.append(self.path)
        if self.path == f"{HERE}/p1/events":
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"f\r\nevent: started\n\r\n")
        elif self.path == "/picture":
            self.send_response(200)
            self.send_header("content-length", "3")
            self.end_headers()
            self.wfile.write(b"png")
        elif len(self.asked_for) > 2:
            image = {"url": f"http://{self.headers['host']}/picture", "mime": "x", "seed": 1}
            done = {"outputs": [image], "served_by": "", "engine": "x", "metrics": {}}
            self._tell({"id": "p1", "status": "succeeded", "finished_at": "now", **done})
        self.close_connection = True

    def _tell(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_words: object) -> None:
        """Says nothing."""


@pytest.fixture
def cutting() -> Iterator[ThreadingHTTPServer]:
    Cutting.asked_for = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cutting)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_connection_that_is_cut_costs_no_picture(cli: Cli, cutting: ThreadingHTTPServer) -> None:
    said = cli(
        "generate", "x", "-o", "x.png", "--server", f"http://127.0.0.1:{cutting.server_port}"
    )
    assert (said.code, said.out.strip()) == (0, "x.png")
    assert Path("x.png").read_bytes() == b"png"
    assert Cutting.asked_for == [f"{HERE}/p1/events", *[f"{HERE}/p1?wait=30"] * 2, "/picture"]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("generate", "x", "--server", "localhost:8000"), 1, "http://HOST:PORT"),
        (("generate", "\udcff"), 2, "no text"),
        (("keys", "create", "--budget", "inf"), 2, "--budget"),
        (("keys", "revoke", ""), 2, "id, name or prefix"),
        (("keys", "revoke", "a/b"), 1, "no active keys have the name a/b"),
        (("serve", "--port", "1", "--set", "port.x=1"), 3, "port was given as a single value"),
    ],
)
def test_odd_words_are_refused_in_a_sentence(
    cli: Cli, words: tuple[str, ...], code: int, part: str
) -> None:
    said = cli(*words)
    assert said.code == code
    assert part in " ".join(said.err.replace("│", " ").split())


@pytest.mark.parametrize("name", ["x?y", "x#y", "a/b", "100%", ".."])
def test_a_key_is_revoked_by_its_whole_name(cli: Cli, name: str) -> None:
    cli("keys", "create", "--name", "x")
    cli("keys", "create", "--name", name)
    assert cli("keys", "revoke", name).out.endswith(f" {name}\n")
    other, ours = cli("keys", "list").out.splitlines()
    assert ("active" in other, "revoked" in ours) == (True, True)


def test_the_address_that_a_killed_server_left_gets_no_admin_token(
    cli: Cli, cutting: ThreadingHTTPServer, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lock = DirectoryLock(data / "fluxserve.lock")
    lock.acquire()  # by the next server, which is still loading its model
    url = f"http://127.0.0.1:{cutting.server_port}"
    note = {"url": url, "pid": os.getpid() + 1, "verify": True}
    (data / "server.json").write_text(json.dumps(note))
    (data / "admin.token").write_text("secret")
    said = cli("keys", "list", "--data-dir", str(data))
    lock.release()
    assert (said.code, "try again in a moment" in said.complaint) == (3, True)
    assert not Cutting.asked_for


def test_a_full_disk_behind_stdout_is_said_in_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "fluxserve", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0].startswith("fluxserve: what was to be written")
    assert "Traceback" not in ended.stderr


def test_the_doctor_wants_a_folder_for_data_and_a_usable_certificate(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    ill = cli("doctor", "--data-dir", str(file))
    assert (ill.code, f"{file} is no folder" in ill.out) == (1, True)
    monkeypatch.setenv("FLUXSERVE_TLS_CERT", "gone.pem")
    ill = cli("doctor")
    assert (ill.code, "setting tls_cert: gone.pem cannot be read" in ill.out) == (1, True)


def test_a_log_that_is_no_terminal_has_the_date_and_no_colour(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import logging
    import re

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.set_up("info")
        logging.getLogger("fluxserve").error("so it is")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ERROR   fluxserve: so it is\n", line
    )


def test_without_a_home_a_data_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxserve import settings as setting

    monkeypatch.setenv("XDG_DATA_HOME", "~nobody-of-this-name/data")
    with pytest.raises(StartupError, match="no home folder: name a folder with --data-dir"):
        _ = setting.load({}, environ={}).data
