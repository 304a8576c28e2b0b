"""Whatever comes in, the answer is a clear error of the dialect, at once, and the server goes on.

One table of bad bodies and pictures, asked of every dialect; requests as raw HTTP, one server.
"""

import base64
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.dialects.served import png
from tests.server import ServerProcess

SOON_S = 5.0  # on a busy machine; an answer takes milliseconds
KEY_WRONG = "fsk-nobody-was-given-this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tongue:
    """How one dialect is asked, and where its errors say what is wrong."""

    path: str
    unknown_model: str  # the path or model that nobody has
    image: str  # the field of an input picture
    steps: str
    status: int  # of a bad field
    malformed: int  # of a body that is no JSON
    found: str  # path of a prediction that is not there
    no_key: int
    keys: frozenset[str]  # fields of every error body
    wrap: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body


NOBODY = "01hzzzzzzzzzzzzzzzzzzzzzzz"
TONGUES = {
    "replicate": Tongue(
        path="/v1/models/black-forest-labs/flux-kontext-dev/predictions",
        unknown_model="/v1/models/black-forest-labs/flux-none/predictions",
        image="input_image",
        steps="num_inference_steps",
        status=422,
        malformed=400,
        found=f"/v1/predictions/{NOBODY}",
        no_key=401,
        keys=frozenset({"detail", "status"}),
        wrap=lambda body: {"input": body},
    ),
    "bfl": Tongue(
        path="/v1/flux-kontext-pro",
        unknown_model="/v1/flux-none",
        image="input_image",
        steps="safety_tolerance",
        status=422,
        malformed=422,
        found=f"/v1/get_result?id={NOBODY}",
        no_key=403,
        keys=frozenset({"detail"}),
    ),
    "wavespeed": Tongue(
        path="/api/v3/wavespeed-ai/flux-kontext-dev",
        unknown_model="/api/v3/wavespeed-ai/flux-none",
        image="image",
        steps="num_inference_steps",
        status=400,
        malformed=400,
        found=f"/api/v3/predictions/{NOBODY}/result",
        no_key=401,
        keys=frozenset({"code", "message"}),
    ),
    "native": Tongue(
        path="/fluxserve/v1/predictions",
        unknown_model="/fluxserve/v1/models/nobody/nothing",
        image="images",
        steps="num_steps",
        status=422,
        malformed=422,
        found=f"/fluxserve/v1/predictions/{NOBODY}",
        no_key=401,
        keys=frozenset({"error"}),
        wrap=lambda body: {"model": "flux-kontext-dev", **body},
    ),
}
PICTURE = png(256, 256)
PRIVATE = (
    "http://127.0.0.1/a.png",
    "http://127.1/a.png",
    "http://2130706433/a.png",
    "http://0x7f000001/a.png",
    "http://0177.0.0.1/a.png",
    "http://0.0.0.0/a.png",
    "http://[::1]/a.png",
    "http://[::ffff:127.0.0.1]/a.png",
    "http://[::ffff:a9fe:a9fe]/latest/meta-data",
    "http://[64:ff9b::7f00:1]/a.png",
    "http://169.254.169.254/latest/meta-data",
    "http://10.1.2.3/a.png",
    "http://172.16.0.1/a.png",
    "http://192.168.0.1:8080/a.png",
    "http://100.64.0.1/a.png",
    "http://[fd00::1]/a.png",
    "http://[fe80::1]/a.png",
    "http://user:secret@127.0.0.1/a.png",
)


def bomb(side: int = 30_000) -> bytes:
    """A PNG of some 100 kB that decodes to 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PICTURES = {
    "not an image": b"a poem that is none",
    "a truncated image": PICTURE[: len(PICTURE) // 2],
    "a decompression bomb": bomb(),
    "nothing at all": b"",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    environ = {
        "FLUXSERVE_SIMULATOR__ENABLED": "true",
        "FLUXSERVE_SIMULATOR__SECONDS": "0.05",
        "FLUXSERVE_FETCH__TIMEOUT_S": "1",
        "FLUXSERVE_FETCH__ALLOW": "127.0.0.77/32",
    }
    process = ServerProcess(tmp_path_factory.mktemp("bad"), environ=environ)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a key that nobody here has."""
    folder = tmp_path_factory.mktemp("closed")
    process = ServerProcess(folder, environ={"FLUXSERVE_SIMULATOR__ENABLED": "true"})
    token = (folder / "admin.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    made = httpx.post(f"{process.url}/fluxserve/v1/keys", json={"name": "x"}, headers=headers)
    assert made.status_code == 201, made.text
    yield process
    process.stop()


@pytest.fixture(params=sorted(TONGUES))
def tongue(request: pytest.FixtureRequest) -> Tongue:
    return TONGUES[request.param]


@dataclass(frozen=True, slots=True)
class Asker:
    """Sends bad things and sees that the answer is soon there, and the server well after it."""

    url: str
    tongue: Tongue

    def body(self, **fields: Any) -> bytes:
        body = {"prompt": "a fox", **fields}
        return json.dumps(self.tongue.wrap(body)).encode()

    def post(self, body: bytes, path: str = "", **more: Any) -> httpx.Response:
        return self.ask("POST", path or self.tongue.path, content=body, **more)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        began = time.monotonic()
        answer = httpx.request(method, self.url + path, timeout=30, **more)
        assert time.monotonic() - began < SOON_S
        assert set(answer.json()) >= self.tongue.keys
        assert httpx.get(f"{self.url}/readyz").status_code == 200
        return answer

    def picture(self, data: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(data).decode()

    def with_image(self, text: str) -> bytes:
        name = self.tongue.image
        return self.body(**{name: [text] if name == "images" else text})


@pytest.fixture
def asker(server: ServerProcess, tongue: Tongue) -> Asker:
    return Asker(server.url, tongue)


def test_an_unknown_model_is_not_found(asker: Asker) -> None:
    method = "GET" if "fluxserve" in asker.tongue.path else "POST"
    answer = asker.ask(method, asker.tongue.unknown_model, content=asker.body())
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", "many"), ("steps", 10_000), ("steps", -3), ("prompt", 7), ("prompt", "")],
    ids=lambda value: str(value) or "empty",
)
def test_a_bad_field_is_named(asker: Asker, field: str, value: object) -> None:
    name = asker.tongue.steps if field == "steps" else field
    answer = asker.post(asker.body(**{name: value}))
    assert answer.status_code == asker.tongue.status
    assert name in answer.text


def test_an_unknown_top_level_field_is_named_where_the_service_minds(server: ServerProcess) -> None:
    for name in ("replicate", "native"):  # the others ignore it, as their clients expect
        asker = Asker(server.url, TONGUES[name])
        body = json.loads(asker.body())
        answer = asker.post(json.dumps({**body, "colour_of_magic": 8}).encode())
        assert answer.status_code == asker.tongue.status
        assert "colour_of_magic" in answer.text


@pytest.mark.parametrize("kind", list(PICTURES))
def test_a_picture_that_is_none_is_refused_by_its_field(asker: Asker, kind: str) -> None:
    answer = asker.post(asker.with_image(asker.picture(PICTURES[kind])))
    assert answer.status_code in (asker.tongue.status, 413)
    assert asker.tongue.image in answer.text


@pytest.mark.parametrize("url", PRIVATE)
def test_a_private_address_is_refused_in_every_spelling(asker: Asker, url: str) -> None:
    answer = asker.post(asker.with_image(url))
    assert answer.status_code == asker.tongue.status
    assert asker.tongue.image in answer.text
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'{"prompt": NaN}', b'{"prompt": "\xff\xfe"}', b"[" * 100_000, b'"a"'],
    ids=["empty", "cut", "a list", "NaN", "not utf-8", "deep", "a string"],
)
def test_a_body_that_is_no_json_object_is_refused(asker: Asker, body: bytes) -> None:
    answer = asker.post(body, headers={"Content-Type": "application/json"})
    assert answer.status_code == asker.tongue.malformed
    assert "body" in answer.text


def test_a_body_of_100_mb_is_refused_before_it_is_read(asker: Asker) -> None:
    answer = declared(asker.url, asker.tongue.path, 100_000_000)
    assert " 413 " in answer.partition("\r\n")[0]
    assert httpx.get(f"{asker.url}/readyz").status_code == 200


def declared(url: str, path: str, size: int) -> str:
    """The answer to the head of a request whose body never comes."""
    where = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((where.hostname, where.port), timeout=SOON_S) as connection:
        connection.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
        return connection.recv(65536).decode()


def test_a_body_of_100_mb_that_streams_in_is_refused_in_words(asker: Asker) -> None:
    """`tests/e2e/test_large_bodies.py` tells what becomes of clients that never end."""
    chunks = (b" " * 1_000_000 for _ in range(100))
    answer = httpx.post(asker.url + asker.tongue.path, content=chunks, timeout=30)
    assert answer.status_code == 413
    assert "bytes" in answer.text
    assert httpx.get(f"{asker.url}/readyz").status_code == 200


def test_an_unknown_prediction_is_not_found(asker: Asker) -> None:
    assert asker.ask("GET", asker.tongue.found).status_code == 404


@pytest.mark.parametrize("key", ["", KEY_WRONG])
def test_without_the_right_key_nothing_is_done(
    closed: ServerProcess, tongue: Tongue, key: str
) -> None:
    asker = Asker(closed.url, tongue)
    headers = {"Authorization": f"Bearer {key}", "X-Key": key} if key else {}
    answer = asker.post(asker.body(), headers=headers)
    assert answer.status_code == tongue.no_key
    assert KEY_WRONG not in answer.text


def test_a_url_that_never_answers_ends_the_prediction_in_words(server: ServerProcess) -> None:
    with socket.create_server(("127.0.0.77", 0)) as silent:
        asker = Asker(server.url, TONGUES["native"])
        url = f"http://127.0.0.77:{silent.getsockname()[1]}/a.png"
        made = asker_posts(asker, url)
        done = httpx.get(f"{made['urls']['get']}?wait=20", timeout=30).json()
    assert (done["status"], done["error"]["code"]) == ("failed", "input_unreachable")
    assert "127.0.0.77" in done["error"]["message"]
    again = httpx.post(f"{made['urls']['get']}/cancel").json()
    assert again["status"] == "failed"  # what has ended stays as it ended


def asker_posts(asker: Asker, url: str) -> dict[str, Any]:
    answer = httpx.post(asker.url + asker.tongue.path, content=asker.with_image(url))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_forms_that_are_none_and_uploads_without_end_are_refused(
    server: ServerProcess,
) -> None:
    files = f"{server.url}/fluxserve/v1/files"
    kind = {"Content-Type": "multipart/form-data; boundary=XX"}
    answer = httpx.post(files, content=b"not a form", headers=kind)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "file")
    assert httpx.post(files, content=b"not a picture").json()["error"]["field"] == "file"
    assert " 413 " in declared(server.url, "/fluxserve/v1/files", 900_000_000).split("\r\n")[0]
