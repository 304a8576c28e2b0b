"""A small client of the native API, for a server elsewhere or one started inside this process.

httpx is imported when somebody calls: `serve` does not need it to start its engine.
"""

from __future__ import annotations

import json
import ssl
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fluxserve.core.errors import ErrorCode, FluxserveError, Unavailable

if TYPE_CHECKING:
    import httpx

API = "/fluxserve/v1"
START_S = 120.0  # how long a server inside this process may take to load its model
STOP_S = 30.0  # and to let go of it
END_OF_CERTIFICATE = "-----END CERTIFICATE-----"


class Client:
    """Calls one server. Every error is a FluxserveError with the server's own sentence."""

    def __init__(
        self, url: str, key: str | None = None, *, trust: ssl.SSLContext | None = None
    ) -> None:
        """`trust`: what to believe of the server's certificate [the system, SSL_CERT_FILE]."""
        import httpx

        if not url.lower().startswith(("http://", "https://")):
            raise FluxserveError(f"--server {url}: http://HOST:PORT or https://... is needed")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(60.0, connect=10.0, read=None)
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/"), headers=headers, timeout=timeout, verify=trust or True
            )
        except httpx.InvalidURL as error:
            raise FluxserveError(f"--server {url} is not a URL: {error}") from None

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer as JSON, or None when there is none."""
        with self._explained():
            answer = self._http.request(method, API + path, json=body)
        return self._read(answer)

    def upload(self, data: bytes, name: str) -> str:
        """Store a file; returns the link to use as an input picture."""
        with self._explained():
            answer = self._http.post(f"{API}/files", files={"file": (name, data)})
        link: str = self._read(answer)["url"]
        return link

    def download(self, url: str) -> bytes:
        with self._explained():
            answer = self._http.get(url)
        if answer.status_code != 200:
            raise Unavailable(f"the picture could not be downloaded: HTTP {answer.status_code}")
        return answer.content

    def events(self, prediction_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Kind and data of each event, until the prediction is finished or the stream breaks."""
        path = f"{API}/predictions/{prediction_id}/events"
        with self._explained(), self._http.stream("GET", path) as answer:
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

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Troubles of the network in words, with the server's address."""
        import httpx

        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"{self._http.base_url} does not answer: {error}") from None

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
        said = body.get("error") if isinstance(body, dict) else None
        if not isinstance(said, dict) or "message" not in said:
            text = f"{self._http.base_url} answered {answer.status_code} in words of its own"
            raise Unavailable(f"{text}: is it a fluxserve server?")
        error = FluxserveError(str(said["message"]))
        known = said.get("code")
        error.code = ErrorCode(known) if known in list(ErrorCode) else ErrorCode.INTERNAL
        raise error


@contextmanager
def connected(server: str | None, key: str | None, **flags: Any) -> Iterator[Client]:
    """A client of `server`, or of one that lives only as long as this command.

    BadParameter for settings that a server elsewhere would never see.
    """
    if server:
        if flags.get("config"):
            text = "--config is for a server inside this command, and --server names another"
            raise typer.BadParameter(f"{text} ({server}): leave out one of them")
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
    """A server on a free loopback port in a thread of this process, on a folder of its own."""
    from fluxserve import settings as setting
    from fluxserve.engines import early

    apart = {"tls_cert": "", "tls_key": "", "database": {"url": ""}, "files": {"url": ""}}
    here = {"host": "127.0.0.1", "port": 0, "data_dir": folder, "public_url": ""}
    wanted = {**flags, **apart, **here}
    config = wanted.pop("config", None)
    settings = setting.load(wanted, config=config)
    with closing(early.begin(settings)) as begun:
        from fluxserve.serving import Background  # while its engine imports torch

        server = Background(settings, begun)
        thread = threading.Thread(target=server.run, name="fluxserve", daemon=True)
        thread.start()
        try:
            yield server.wait_until_ready(START_S)
        finally:
            server.stop()
            thread.join(STOP_S)


def pinned(certificate: str) -> ssl.SSLContext:
    """Trust the server that shows the first certificate of this file, whatever its name; OSError.

    For commands beside a server: they read its own file, and they reach it by another address
    than the one it was certified for.
    """
    first, end, _ = Path(certificate).read_text().partition(END_OF_CERTIFICATE)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trust.load_verify_locations(cadata=first + end)
    return trust


def read_picture(path: str) -> bytes:
    """The bytes of a file named on the command line; FluxserveError says what is wrong."""
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise FluxserveError(f"{path} cannot be read: {error.strerror}") from None
