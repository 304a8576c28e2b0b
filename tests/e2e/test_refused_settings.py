"""Settings that cannot work are refused before anything starts: one sentence, exit code 3."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from fluxserve import settings as setting
from fluxserve.app import House
from fluxserve.asgi import create_app
from fluxserve.cli.client import pinned
from fluxserve.core.errors import StartupError
from fluxserve.serving import check_certificate
from fluxserve.settings import Settings
from tests.dialects.served import png
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


@pytest.mark.parametrize(
    "url",
    [
        "img.example.com",
        "img.example.com:8000",
        "//img.example.com",
        "ftp://img.example.com",
        "https://",
        "https://:8000",
        "https:///path",
        "https://img.example.com:99999",
        "https://img.example.com:0",
        "https://img.example.com:eight",
        "https://user@img.example.com",
        "https://img.example.com?x=1",
        "https://img.example.com#top",
        "https://img.example.com/a/b/c",
        "https://img.example.com/a b",
        "https://bücher.example",
        " https://img.example.com",
        "https://img.example.com\n",
    ],
)
def test_a_public_url_that_would_break_every_link_is_refused_by_name(url: str) -> None:
    with pytest.raises(
        StartupError, match=r"^setting public_url: scheme://host\[:port\] is needed"
    ):
        setting.load({"public_url": url}, environ={})


def test_a_start_with_half_a_public_url_ends_in_one_sentence(tmp_path: Path) -> None:
    words = ("--public-url", "img.example.com", "--data-dir", str(tmp_path / "data"))
    assert complaint(*words) == (
        "fluxserve: setting public_url: scheme://host[:port] is needed, "
        "such as https://img.example, not img.example.com"
    )


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("", ""),
        ("https://img.example.com", "https://img.example.com"),
        ("HTTP://Img.example.com:8080/", "http://Img.example.com:8080"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://localhost/pictures/", "https://localhost/pictures"),
    ],
)
def test_a_public_url_is_kept_without_a_slash_at_its_end(url: str, kept: str) -> None:
    assert setting.load({"public_url": url}, environ={}).public_url == kept


async def test_links_under_a_prefix_lead_back_to_us(
    make_settings: Callable[..., Settings],
) -> None:
    """A proxy that serves `/pictures` of its own takes the prefix off; links carry it."""
    house = House(make_settings(public_url="https://flux.example/pictures"))
    transport = httpx.ASGITransport(create_app(house))
    await house.start()
    async with httpx.AsyncClient(transport=transport, base_url="http://flux.example") as http:
        filed = (await http.post("/fluxserve/v1/files", content=png())).json()
        assert filed["url"].startswith("https://flux.example/pictures/out/")
        seen = await http.get(filed["url"].replace("https://flux.example/pictures", ""))
        assert seen.status_code == 200
        wish = {"model": "flux-kontext-dev", "prompt": "a fox", "images": [filed["url"]]}
        made = await http.post("/fluxserve/v1/predictions", json=wish)
        assert made.headers["location"].startswith("https://flux.example/pictures/fluxserve/v1/")
        done = await http.get(f"/fluxserve/v1/predictions/{made.json()['id']}?wait=30")
        assert done.json()["status"] == "succeeded", done.json()["error"]
    await house.stop()


def test_a_trusted_proxy_that_is_no_network_is_refused_by_name() -> None:
    with pytest.raises(StartupError, match=r"^setting proxy.trusted: an address or a network"):
        setting.load({"proxy": {"trusted": ["10.0.0.0/8", "nginx"]}}, environ={})
    told = setting.load({}, environ={"FLUXSERVE_PROXY__TRUSTED": "10.1.2.3/8, fd00::1"})
    assert told.proxy.trusted == ("10.1.2.3/8", "fd00::1")


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"RETENTION__FILES_S": "1e13"}, "retention.files_s: "),
        ({"RETENTION__FILES_S": "inf"}, "retention.files_s: "),
        ({"DISPATCH__DRAIN_S": "nan"}, "dispatch.drain_s: "),
        ({"ENGINE__DEVICE": "banana"}, "engine.device: auto, cpu, mps, cuda or cuda:N is needed"),
        ({"ENGINE__DEVICE": "cuda:0,cuda:"}, "not 'cuda:'"),
        ({"CORS": "[bad"}, "cors: a list in JSON is needed"),
        ({"SIMULATOR": "1"}, "simulator: a table is needed"),
        ({"PORT__X": "1", "PORT": "1"}, "port: given as a table and"),
        ({"PORT": "1", "PORT__X": "1"}, "port.x: port was given as a single value"),
        ({"UPSTREAM": '{"name": "x"}'}, "upstream: a list is needed; of tables"),
        ({"UPSTREAM": "x"}, "upstream: outside the settings file it must be JSON"),
    ],
)
def test_a_value_that_cannot_work_names_its_setting(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(StartupError, match=r"^setting ") as refused:
        setting.load(environ={f"FLUXSERVE_{name}": value for name, value in environ.items()})
    assert sentence in refused.value.message


def test_a_settings_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 1234\nengine.device = "cuda:0, cpu"\n', encoding="utf-8-sig")
    assert setting.load(config=str(file), environ={}).port == 1234


def test_a_server_whose_output_nobody_reads_serves_all_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    words = [sys.executable, "-m", "fluxserve", "serve", "--port", "0", "--data-dir", str(data)]
    for shut in (">&-", ">/dev/full"):
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" {shut}', "sh", *words, "--set", "simulator.enabled=true"],
            stderr=subprocess.PIPE,
            text=True,
        )
        note = data / "server.json"
        while process.poll() is None and not note.exists():
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        url = json.loads(note.read_text())["url"]
        assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200, shut
        process.terminate()
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors


def test_a_start_on_a_full_disk_ends_in_one_sentence(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "server.json").symlink_to("/dev/full")
    words = ("--data-dir", str(data), "--set", "simulator.enabled=true", "--log-level", "error")
    assert complaint(*words).startswith(f"fluxserve: {data} has no room left")
