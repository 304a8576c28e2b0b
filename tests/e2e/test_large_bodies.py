"""A body that is too large is answered with 413, whatever its client does meanwhile.

Clients that send everything before they read anything (Python's http.client, the fetch of Node)
would otherwise find a connection that was reset under them.
"""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from fluxserve.unread import LINGER_BYTES
from tests.server import ServerProcess

LIMIT = 32 * 1024 * 1024  # of a JSON body, the default
LARGE = 40_000_000
PIECE = b"x" * 65536
NATIVE = "/fluxserve/v1/predictions"
PATHS = {
    "native": NATIVE,
    "replicate": "/v1/models/black-forest-labs/flux-dev/predictions",
    "bfl": "/v1/flux-dev",
    "wavespeed": "/api/v3/wavespeed-ai/flux-dev",
    "openai": "/openai/v1/images/generations",
    "fal": "/fal/run/fal-ai/flux/dev",
}
SLACK = 24 * 1024 * 1024  # of memory, and of the buffers between two sockets
FETCH = """
const [url, size] = [process.argv[1], Number(process.argv[2])];
const found = [];
for (let turn = 0; turn < 6; turn += 1) {
  const body = turn % 2 ? new Blob([new Uint8Array(size)]).stream() : "x".repeat(size);
  try {
    const answer = await fetch(url, { method: "POST", body, duplex: "half" });
    await answer.json();
    found.push([answer.status, "dict"]);
  } catch (error) {
    found.push([0, String(error.cause ?? error)]);
  }
}
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    quick = {"FLUXSERVE_SIMULATOR__ENABLED": "true"}
    server = ServerProcess(tmp_path_factory.mktemp("data"), environ=quick)
    yield server
    assert server.stop() == 0


def connected(server: ServerProcess) -> http.client.HTTPConnection:
    place = urlsplit(server.url)
    return http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // len(PIECE) + 1):
        yield PIECE


def post(server: ServerProcess, path: str, size: int, **headers: str) -> tuple[int, Any]:
    """What http.client gets; chunked unless a length is among the headers."""
    connection = connected(server)
    connection.request("POST", path, body=pieces(size), headers=headers)
    answer = connection.getresponse()
    told = answer.status, json.loads(answer.read())
    assert answer.headers["connection"] == "close"
    connection.close()
    return told


def length(size: int) -> str:
    return str((size // len(PIECE) + 1) * len(PIECE))


def peak(server: ServerProcess) -> int:
    """The most memory that the server ever had, in bytes."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("name", PATHS)
def test_a_client_that_sends_everything_first_reads_the_413(
    server: ServerProcess, name: str
) -> None:
    status, told = post(server, PATHS[name], LARGE, **{"Content-Length": length(LARGE)})
    assert status == 413
    assert f"at most {LIMIT} bytes" in json.dumps(told)


def test_a_body_in_chunks_that_grows_too_large_is_answered_too(server: ServerProcess) -> None:
    status, told = post(server, NATIVE, LARGE)
    assert status == 413
    assert told["error"]["code"] == "too_large"


def test_an_old_client_and_one_that_wants_to_close_read_their_refusal(
    server: ServerProcess,
) -> None:
    """Any refusal that leaves a body unread: here nothing is at the path."""
    connection = connected(server)
    headers = {"Connection": "close", "Content-Length": length(LARGE)}
    connection.request("POST", "/nothing/here", body=pieces(LARGE), headers=headers)
    assert connection.getresponse().status == 404
    connection.close()
    with talk(server) as line:
        line.sendall(f"POST /nothing/here HTTP/1.0\r\nContent-Length: {LARGE}\r\n\r\n".encode())
        line.sendall(bytes(LARGE))
        assert line.recv(1000).startswith(b"HTTP/1.1 404")


def test_what_is_dropped_takes_no_memory(server: ServerProcess) -> None:
    size = LINGER_BYTES - SLACK
    before = peak(server)
    assert post(server, NATIVE, size, **{"Content-Length": length(size)})[0] == 413
    assert peak(server) < before + SLACK


def talk(server: ServerProcess) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port), timeout=60)


def test_a_client_that_never_stops_sending_is_answered_and_cut_off(server: ServerProcess) -> None:
    with talk(server) as line:
        line.sendall(f"POST {NATIVE} HTTP/1.1\r\nHost: x\r\n".encode())
        line.sendall(b"Content-Length: 10000000000000\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 413")  # at once, before a byte of the body
        assert LARGE < sent_until_cut(line) < LINGER_BYTES + SLACK


def sent_until_cut(line: socket.socket) -> int:
    """Bytes that went out until the connection was closed on us."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < LINGER_BYTES + SLACK:
            line.sendall(PIECE)
            sent += len(PIECE)
    return sent


def test_a_client_that_falls_silent_is_answered_and_let_go(server: ServerProcess) -> None:
    began = time.monotonic()
    with talk(server) as line:
        line.sendall(f"POST {NATIVE} HTTP/1.1\r\nHost: x\r\n".encode())
        line.sendall(f"Content-Length: {LARGE}\r\n\r\n".encode() + PIECE)
        told = b"".join(iter(lambda: line.recv(4096), b""))  # to the end of the connection
    assert told.startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < 20


def by_httpx(url: str) -> list[tuple[int, str]]:
    found = []
    for body in (bytes(LARGE), pieces(LARGE)):
        answer = httpx.post(url, content=body, timeout=60)
        found.append((answer.status_code, type(answer.json()).__name__))
    return found


def by_node(url: str) -> list[tuple[int, str]]:
    words = ("--input-type=module", "-e", FETCH, url, str(LARGE))
    told = subprocess.run(["node", *words], capture_output=True, text=True, timeout=120, check=True)
    return [(status, kind) for status, kind in json.loads(told.stdout)]


LIBRARIES = (by_httpx, by_node) if shutil.which("node") else (by_httpx,)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_libraries_of_clients_read_the_413(
    server: ServerProcess, library: Callable[[str], list[tuple[int, str]]]
) -> None:
    assert set(library(server.url + PATHS["replicate"])) == {(413, "dict")}
