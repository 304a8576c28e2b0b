"""A small client of the native API, for a server elsewhere or one started inside this process."""

import json
import ssl
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fluxserve.core.errors import ErrorCode, FluxserveError, Unavailable

API = "/fluxserve/v1"
START_S = 120.0  # how long a server inside this process may take to load its model


class Client:
    """Calls one server. Every error is a FluxserveError with the server's own sentence."""

    def __init__(self, url: str, key: str | None = None, *, verify: str | bool = True) -> None:
        """`verify`: a file with the authority to trust, for a server with its own."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(60.0, connect=10.0, read=None)
        trusted = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
        self._http = httpx.Client(
            base_url=url.rstrip("/"), headers=headers, timeout=timeout, verify=trusted
        )

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer as JSON, or None when there is none."""
        try:
            answer = self._http.request(method, API + path, json=body)
        except httpx.HTTPError as error:
            raise Unavailable(f"{self._http.base_url} does not answer: {error}") from None
        return self._read(answer)

    def upload(self, data: bytes, name: str) -> str:
        """Store a file; returns the link to use as an input picture."""
        try:
            answer = self._http.post(f"{API}/files", files={"file": (name, data)})
        except httpx.HTTPError as error:
            raise Unavailable(f"{self._http.base_url} does not answer: {error}") from None
        link: str = self._read(answer)["url"]
        return link

    def download(self, url: str) -> bytes:
        answer = self._http.get(url)
        if answer.status_code != 200:
            raise Unavailable(f"the picture could not be downloaded: HTTP {answer.status_code}")
        return answer.content

    def events(self, prediction_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Kind and data of each event, until the prediction is finished."""
        with self._http.stream("GET", f"{API}/predictions/{prediction_id}/events") as answer:
            if answer.status_code != 200:
                answer.read()
                self._read(answer)
            kind, data = "", ""
            for line in answer.iter_lines():
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif line.startswith("data:"):
                    data += line[5:].strip()
                elif not line and data:
                    yield kind, json.loads(data)
                    kind, data = "", ""

    def _read(self, answer: httpx.Response) -> Any:
        if answer.status_code == 204:
            return None
        try:
            body = answer.json()
        except ValueError:
            text = f"{self._http.base_url} answered {answer.status_code} without JSON"
            raise Unavailable(f"{text}: is it a fluxserve server?") from None
        if answer.is_success:
            return body
        said = body.get("error", {}) if isinstance(body, dict) else {}
        error = FluxserveError(said.get("message") or f"HTTP {answer.status_code}")
        known = said.get("code")
        error.code = ErrorCode(known) if known in list(ErrorCode) else ErrorCode.INTERNAL
        raise error


@contextmanager
def connected(server: str | None, key: str | None, **flags: Any) -> Iterator[Client]:
    """A client of `server`, or of one that lives only as long as this command."""
    if server:
        client = Client(server, key)
        try:
            yield client
        finally:
            client.close()
        return
    with tempfile.TemporaryDirectory(prefix="fluxserve-") as folder, _inside(folder, flags) as url:
        client = Client(url)
        try:
            yield client
        finally:
            client.close()


@contextmanager
def _inside(folder: str, flags: Mapping[str, Any]) -> Iterator[str]:
    """A server on a free loopback port in a thread of this process."""
    from fluxserve import settings as setting
    from fluxserve.serving import Background

    wanted = {**flags, "host": "127.0.0.1", "port": 0, "data_dir": folder}
    config = wanted.pop("config", None)
    server = Background(setting.load(wanted, config=config))
    thread = threading.Thread(target=server.run, name="fluxserve", daemon=True)
    thread.start()
    try:
        yield server.wait_until_ready(START_S)
    finally:
        server.stop()
        thread.join(30)


def read_picture(path: str) -> bytes:
    """The bytes of a file named on the command line; FluxserveError says what is wrong."""
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise FluxserveError(f"{path} cannot be read: {error.strerror}") from None
