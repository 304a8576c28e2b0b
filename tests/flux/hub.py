"""A hub on a local port: lists and serves a repository, and misbehaves as told."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

COMMIT = "a1" * 20
LARGE = (".safetensors",)


@dataclass
class FakeHub:
    """What it holds and how it behaves; tests change it as they go."""

    repo: str
    files: dict[str, bytes]
    card: dict[str, str] = field(default_factory=lambda: {"license": "apache-2.0"})
    token: str | None = None  # asked for, where set
    gated: bool = False  # even the right token has to be granted first
    break_after: dict[str, int] = field(default_factory=dict)  # bytes, then the connection drops
    breaks: int = 10**9  # how many times it does
    status: int | None = None  # of every answer
    spoil: set[str] = field(default_factory=set)  # files whose bytes are wrong
    ignores_ranges: bool = False
    content_host: str | None = None  # where resolved files redirect to
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def listing(self) -> dict[str, object]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if name.endswith(LARGE):
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.repo, "sha": COMMIT, "siblings": siblings, "cardData": self.card,
                "gated": "auto" if self.gated else False, "private": False}  # fmt: skip


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            hub.asked.append(
                (self.path, self.headers.get("range"), self.headers.get("authorization"))
            )
            path = urlsplit(self.path).path
            if hub.status is not None:
                return self.refuse(hub.status)
            if path.startswith("/content/"):
                return self.content(path.removeprefix("/content/"))
            if not self.may_read():
                return None
            if path.startswith(f"/api/models/{hub.repo}/revision/"):
                return self.listing(path.rpartition("/")[2])
            prefix = f"/{hub.repo}/resolve/{COMMIT}/"
            name = path.removeprefix(prefix)
            if not path.startswith(prefix) or name not in hub.files:
                return self.refuse(404, "EntryNotFound")
            if hub.content_host is None:
                return self.content(name)
            self.send_response(302)
            self.send_header("location", f"{hub.content_host}/content/{name}")
            self.send_header("content-length", "0")
            return self.end_headers()

        def may_read(self) -> bool:
            said = self.headers.get("authorization")
            if hub.token and said != f"Bearer {hub.token}":
                self.refuse(401, "GatedRepo" if hub.gated and not said else "RepoNotFound")
                return False
            if hub.gated and not hub.token:
                self.refuse(403, "GatedRepo")
                return False
            return True

        def listing(self, revision: str) -> None:
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            listing = hub.listing()
            if "blobs" not in parse_qs(urlsplit(self.path).query):
                listing["siblings"] = [{"rfilename": name} for name in hub.files]
            body = json.dumps(listing).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return None

        def content(self, name: str) -> None:
            data = hub.files[name]
            if name in hub.spoil:
                data = bytes(len(data))
            start = 0
            said = self.headers.get("range")
            if said and not hub.ignores_ranges:
                start = int(said.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("content-length", str(len(data) - start))
            self.end_headers()
            if name in hub.break_after and hub.breaks > 0:
                hub.breaks -= 1
                self.wfile.write(data[start : start + hub.break_after[name]])
                self.close_connection = True
            else:
                self.wfile.write(data[start:])

        def refuse(self, status: int, code: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("x-error-code", code)
            self.send_header("content-length", "0")
            self.end_headers()

    return Handler
