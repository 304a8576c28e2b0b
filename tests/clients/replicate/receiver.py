"""A webhook receiver for tests: takes messages by POST, hands the oldest one out by GET."""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

Message: TypeAlias = tuple[dict[str, str], str]  # headers in lower case, body
WAIT_S = 30.0


class Receiver:
    """`url` is where messages go; `take` waits for the next one."""

    def __init__(self, url: str, messages: "queue.Queue[Message]") -> None:
        self.url = url
        self._messages = messages

    def take(self) -> Message:
        return self._messages.get(timeout=WAIT_S)


@contextmanager
def receiving() -> Iterator[Receiver]:
    messages: queue.Queue[Message] = queue.Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            messages.put((headers, body))
            self.send_response(204)
            self.end_headers()

        def do_GET(self) -> None:
            headers, body = messages.get(timeout=WAIT_S)
            raw = json.dumps({"headers": headers, "body": body}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Receiver(f"http://127.0.0.1:{server.server_port}/hook?tag=1", messages)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
