"""Settings that cannot work are refused before anything starts: one sentence, exit code 3."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from fluxserve.cli.client import pinned
from fluxserve.core.errors import StartupError
from fluxserve.serving import check_certificate
from tests.server import ServerProcess

Start = Callable[..., ServerProcess]


def complaint(*words: str) -> str:
    """The one line that a refused start says."""
    ended = subprocess.run(
        [sys.executable, "-m", "fluxserve", "serve", "--port", "0", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 3, ended.stderr
    assert not ended.stdout
    (line,) = ended.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates and keys, good ones and others."""
    folder = tmp_path_factory.mktemp("pem")
    made = trustme.CA().issue_cert("127.0.0.1")
    other = trustme.CA().issue_cert("127.0.0.1")
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    private = made.private_key_pem.bytes()
    key = serialization.load_pem_private_key(private, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    files = {
        "cert.pem": chain,
        "key.pem": private,
        "both.pem": chain + private,
        "other.key": other.private_key_pem.bytes(),
        "locked.key": locked,
        "photo.png": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "empty.pem": b"",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("cert", "key", "named"),
    [
        ("nofile.pem", "key.pem", "setting tls_cert: "),
        ("cert.pem", "nofile.key", "setting tls_key: "),
        ("", "key.pem", "setting tls_cert: needed beside tls_key"),
        ("cert.pem", "", "tls_cert, tls_key: "),  # which holds no key
        ("photo.png", "key.pem", "tls_cert, tls_key: "),
        ("empty.pem", "", "tls_cert, tls_key: "),
        ("cert.pem", "other.key", "mismatch"),
        ("cert.pem", "locked.key", "without a pass phrase"),
        (".", "key.pem", "setting tls_cert: "),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused_by_name(
    pem: Path, cert: str, key: str, named: str
) -> None:
    with pytest.raises(StartupError, match=named):
        check_certificate(str(pem / cert) if cert else "", str(pem / key) if key else "")


def test_a_start_without_a_usable_certificate_ends_in_one_sentence(
    pem: Path, tmp_path: Path
) -> None:
    words = ("--tls-cert", str(pem / "photo.png"), "--tls-key", str(pem / "key.pem"))
    assert "tls_cert" in complaint(*words, "--data-dir", str(tmp_path / "data"))


def test_a_certificate_and_its_key_may_stand_in_one_file(start_server: Start, pem: Path) -> None:
    both = str(pem / "both.pem")
    url = start_server("--tls-cert", both).url
    assert url.startswith("https://")
    assert httpx.get(f"{url}/healthz", verify=pinned(both)).status_code == 200
