"""A real server process for real clients: once over http, once over https with a test CA."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from PIL import Image

from tests.server import ServerProcess

CLIENTS = Path(__file__).resolve().parents[3] / ".clients"
KONTEXT = "black-forest-labs/flux-kontext-dev"
SCHNELL = "black-forest-labs/flux-schnell"
PRO = "black-forest-labs/flux-pro"
SIMULATED = {
    "FLUXSERVE_SIMULATOR__ENABLED": "true",
    "FLUXSERVE_SIMULATOR__SECONDS": "0.1",
    "FLUXSERVE_SIMULATOR__STEPS": "4",
    "FLUXSERVE_FETCH__ALLOW": "127.0.0.0/8",
}


@dataclass(frozen=True, slots=True)
class Served:
    """Where a server is, and the CA file that its certificate needs ("" over http)."""

    url: str
    ca: str = ""

    @property
    def environ(self) -> dict[str, str]:
        """What a client's process needs to reach and trust the server."""
        env = {name: value for name, value in os.environ.items() if "REPLICATE" not in name}
        env["SERVER"] = self.url
        if self.ca:
            env |= {"SSL_CERT_FILE": self.ca, "NODE_EXTRA_CA_CERTS": self.ca}
        return env


@pytest.fixture(scope="session")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = ServerProcess(tmp_path_factory.mktemp("plain"), environ=SIMULATED)
    yield Served(server.url)
    server.stop()


@pytest.fixture(scope="session")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1", "localhost")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    server = ServerProcess(
        folder / "data",
        *("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")),
        environ=SIMULATED,
    )
    yield Served(server.url, str(folder / "ca.pem"))
    server.stop()


@pytest.fixture(scope="session", params=["http", "https"])
def served(request: pytest.FixtureRequest) -> Served:
    name = "plain_server" if request.param == "http" else "tls_server"
    found = request.getfixturevalue(name)
    assert isinstance(found, Served)
    return found


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of 300 x 200, so that its result has 1248 x 832."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.linear_gradient("L").resize((300, 200)).convert("RGB").save(path, "JPEG")
    return path
