"""What a walk through the front door needs: fake providers as processes, a server in front."""

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.server import ServerProcess

NATIVE = "/fluxserve/v1"
CENT = 10_000  # in millionths of a USD


@dataclass(frozen=True, slots=True)
class Fake:
    """A fake provider in a process of its own, looked at from outside."""

    origin: str

    def works(self, prompt: str) -> list[dict[str, Any]]:
        """The jobs it accepted for this prompt."""
        found = httpx.get(f"{self.origin}/_fake/works", trust_env=False, verify=False).json()
        return [work for work in found if work["input"].get("prompt") == prompt]

    def play(self, *acts: Mapping[str, Any]) -> None:
        """What becomes of its next submissions, in order."""
        answer = httpx.post(
            f"{self.origin}/_fake/acts", json=list(acts), trust_env=False, verify=False
        )
        assert answer.status_code == 204, answer.text


@contextlib.contextmanager
def faking(prefixes: Mapping[str, tuple[str, str]]) -> Iterator[dict[str, Fake]]:
    """Fakes by name, from their kinds and prefixes; all start at once."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "tests.fakes", kind, "--prefix", prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, (kind, prefix) in prefixes.items()
    }
    try:
        fakes = {}
        for name, process in processes.items():
            assert process.stdout
            fakes[name] = Fake(process.stdout.readline().strip())
        yield fakes
    finally:
        for process in processes.values():
            process.communicate()  # its input closes: it stops


@dataclass(frozen=True, slots=True)
class Door:
    """A server with an admin's key, and the fakes behind it."""

    server: ServerProcess
    fakes: Mapping[str, Fake]
    admin: str

    def caller(self, key: str = "", **headers: str) -> httpx.Client:
        """Speaks to the server with this key; without one, with the admin's."""
        headers = {"Authorization": f"Bearer {key or self.admin}", **headers}
        return httpx.Client(
            base_url=self.server.url, headers=headers, timeout=30, trust_env=False, verify=False
        )

    def key(self, **said: Any) -> str:
        """A new key of anybody's."""
        with self.caller() as admin:
            answer = admin.post(f"{NATIVE}/keys", json=said)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["secret"])

    def price(self, **said: Any) -> None:
        with self.caller() as admin:
            answer = admin.post(f"{NATIVE}/prices", json=said)
        assert answer.status_code == 201, answer.text

    def asked(self, model: str, prompt: str, **said: Any) -> dict[str, Any]:
        """A prediction that was taken in our own words, as first answered."""
        with self.caller() as admin:
            body = {"model": model, "prompt": prompt, **said}
            answer = admin.post(f"{NATIVE}/predictions", json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def ended(self, id_: str) -> dict[str, Any]:
        """The prediction at its end."""
        with self.caller() as admin:
            answer = admin.get(f"{NATIVE}/predictions/{id_}", params={"wait": "20"})
        assert answer.json()["finished_at"], answer.text
        return dict(answer.json())

    def made(self, model: str, prompt: str, **said: Any) -> dict[str, Any]:
        return self.ended(self.asked(model, prompt, **said)["id"])

    def told(self, path: str, **query: str) -> Sequence[dict[str, Any]]:
        """The results of a list of the native API."""
        with self.caller() as admin:
            answer = admin.get(f"{NATIVE}/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["results"])

    def channel(self, name: str) -> dict[str, Any]:
        (found,) = [row for row in self.told("channels") if row["name"] == name]
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The value of one line of /metrics."""
        with self.caller() as admin:
            text = admin.get("/metrics").text
        mark = name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "} "
        (line,) = [line for line in text.splitlines() if line.startswith(mark)]
        return float(line.removeprefix(mark))


@contextlib.contextmanager
def opened(folder: Path, kinds: Mapping[str, tuple[str, str]], config: str) -> Iterator[Door]:
    """A server whose configuration is `config` with each {NAME} the origin of that fake."""
    with faking(kinds) as fakes:
        for name, fake in fakes.items():
            config = config.replace(f"{{{name}}}", fake.origin)
        path = folder / "fluxserve.toml"
        path.write_text(config, encoding="utf-8")
        server = ServerProcess(
            folder / "data", "--config", str(path), environ={"WALK_KEY": "fake-key"}
        )
        try:
            made = httpx.post(
                f"{server.url}{NATIVE}/keys", json={"is_admin": True}, trust_env=False, verify=False
            )
            yield Door(server, fakes, made.json()["secret"])
        finally:
            server.stop()


def until(is_so: Callable[[], Any], timeout_s: float = 15.0) -> None:
    """Ask again and again until the answer is yes."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def is_picture(data: bytes) -> bool:
    """Whether it is a whole picture of the size that fakes make."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.size == (64, 64)
