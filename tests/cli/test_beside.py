"""`keys` and `models` beside a running server and without one, over TLS too."""

import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme

from fluxserve.cli.client import pinned
from fluxserve.cli.keys import seconds
from tests.cli.conftest import Cli
from tests.server import ServerProcess

Start = Callable[..., ServerProcess]


def test_keys_are_made_listed_and_revoked_without_a_server(cli: Cli, tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    assert cli("keys", "list", *data).err.startswith("no keys")
    made = cli("keys", "create", "--name", "ci", "--expires", "30d", "--rpm", "10", *data)
    secret = made.out.splitlines()[-1]
    listed = cli("keys", "list", *data)
    assert "ci" in listed.out
    assert "active" in listed.out
    assert secret not in listed.out
    assert cli("keys", "revoke", "ci", *data).out.startswith("revoked ")
    assert "revoked" in cli("keys", "list", *data).out
    gone = cli("keys", "revoke", "nobody", *data)
    assert (gone.code, "nobody" in gone.complaint or "no such key" in gone.complaint) == (1, True)


def test_keys_need_no_keys_of_upstreams(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROVIDER_KEY", raising=False)
    monkeypatch.setenv("FLUXSERVE_SIMULATOR__ENABLED", "false")
    config = tmp_path / "fluxserve.toml"
    config.write_text(
        "[[upstream]]\n"
        'name = "bfl"\nkind = "bfl"\nbase_url = "https://api.bfl.ai"\nkey_env = "PROVIDER_KEY"\n'
        'models = { "flux-kontext-dev" = "flux-kontext-dev" }\n'
        '[[route]]\nmodel = "flux-kontext-dev"\nengine = "bfl"\n'
    )
    words = ("--config", str(config), "--data-dir", str(tmp_path / "data"))
    assert cli("keys", "create", "--name", "ci", *words).code == 0
    assert "ci" in cli("keys", "list", *words).out
    assert "PROVIDER_KEY" in cli("models", "list", *words).complaint


@pytest.mark.parametrize("text", ["30", "0d", "-1d", "soon", ""])
def test_a_time_that_is_none_is_wrong_use(cli: Cli, text: str) -> None:
    if text:
        assert cli("keys", "create", "--expires", text).code == 2
    assert seconds("1.5h") == 5400


def test_a_server_over_tls_with_an_authority_of_its_own_is_administered_and_used(
    cli: Cli, start_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    named = authority.issue_cert("pictures.example")  # not the address that it listens on
    local = authority.issue_cert("127.0.0.1")
    root = tmp_path / "root.pem"
    authority.cert_pem.write_to_path(str(root))
    words = {}
    for name, certificate in (("named", named), ("local", local)):
        chain, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(key))
        words[name] = ("--tls-cert", str(chain), "--tls-key", str(key))
    data = tmp_path / "server"
    server = start_server(*words["named"])
    assert server.url.startswith("https://")
    made = cli("keys", "create", "--name", "ci", "--data-dir", str(data))
    assert made.code == 0, made.err
    assert "simulator" in cli("models", "list", "--data-dir", str(data)).out
    server.stop()
    server = start_server(*words["local"])
    wish = ("generate", "a fox", "--size", "256x256", "-o", "fox.png", "--server", server.url)
    secret = made.out.splitlines()[-1]
    assert "certificate" in cli(*wish, "--key", secret).complaint.lower()
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    assert cli(*wish, "--key", secret).code == 0


def test_only_the_certificate_of_the_file_is_believed(start_server: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    ours, theirs = authority.issue_cert("127.0.0.1"), authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "ours.pem", tmp_path / "ours.key"
    ours.cert_chain_pems[0].write_to_path(str(chain))
    ours.private_key_pem.write_to_path(str(key))
    other = tmp_path / "theirs.pem"
    theirs.cert_chain_pems[0].write_to_path(str(other))
    url = start_server("--tls-cert", str(chain), "--tls-key", str(key)).url + "/healthz"
    assert httpx.get(url, verify=pinned(str(chain))).status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(url, verify=pinned(str(other)))
    assert pinned(str(chain)).verify_mode is ssl.CERT_REQUIRED
