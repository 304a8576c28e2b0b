"""One master secret, and what follows from it."""

import base64
import stat
from pathlib import Path

import pytest
from sqlalchemy import delete, insert

from fluxserve.core.errors import StartupError
from fluxserve.storage import tables
from fluxserve.storage.database import Statement, Transition
from fluxserve.storage.opening import open_database
from fluxserve.storage.secrets import (
    ADMIN_FILE,
    MASTER_FILE,
    SHARED_NAME,
    Secrets,
    _create,
    open_admin_token,
    open_secrets,
    read_admin_token,
    share_secrets,
)

ONE = Secrets(bytes(32))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_same_directory_gives_the_same_secrets(tmp_path: Path) -> None:
    first, second = open_secrets(tmp_path / "new"), open_secrets(tmp_path / "new")
    assert first.link_secret == second.link_secret
    assert first.webhook_secret("a") == second.webhook_secret("a")
    assert first.webhook_key.private_bytes_raw() == second.webhook_key.private_bytes_raw()
    assert first.link_secret != open_secrets(tmp_path / "other").link_secret


def test_every_purpose_has_its_own_key() -> None:
    derived = [ONE.derive(purpose) for purpose in ("links", "fal webhooks", "keys at rest", "")]
    assert len(set(derived)) == len(derived)
    assert ONE.webhook_secret("a") != ONE.webhook_secret("b")


def test_a_webhook_secret_has_the_standard_form() -> None:
    secret = ONE.webhook_secret("default")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 24


def test_derivation_never_changes() -> None:
    """Links and webhook secrets that are out there depend on it."""
    assert ONE.link_secret.hex() == EXPECTED_LINKS
    assert ONE.webhook_secret("default") == EXPECTED_WEBHOOK


EXPECTED_LINKS = "7e0335260aa5c9e54bb8df5960875f4f13b08d39875f128bc84bc00bca5808bf"
EXPECTED_WEBHOOK = "whsec_MJp56cGNor2ILeKcn7UjJ3nNTtZD8iZ6"


def test_secrets_are_private_files_and_nothing_else_is_left(tmp_path: Path) -> None:
    open_secrets(tmp_path)
    open_admin_token(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {MASTER_FILE, ADMIN_FILE}
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


def test_whoever_comes_second_keeps_the_secret_of_the_first(tmp_path: Path) -> None:
    for text in ("first", "second"):
        _create(tmp_path / MASTER_FILE, text)
    assert (tmp_path / MASTER_FILE).read_text() == "first\n"
    assert [path.name for path in tmp_path.iterdir()] == [MASTER_FILE]


def test_a_secret_that_others_could_read_is_closed_again(tmp_path: Path) -> None:
    open_secrets(tmp_path)
    (tmp_path / MASTER_FILE).chmod(0o644)
    open_secrets(tmp_path)
    assert mode(tmp_path / MASTER_FILE) == 0o600


@pytest.mark.parametrize("content", [b"", b"abc", b"zz" * 32, b"\xff" * 64])
def test_a_damaged_master_secret_stops_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MASTER_FILE).write_bytes(content)
    with pytest.raises(StartupError, match="restore it from the backup"):
        open_secrets(tmp_path)


def test_the_admin_token_is_kept_and_can_be_read(tmp_path: Path) -> None:
    assert read_admin_token(tmp_path) is None
    token = open_admin_token(tmp_path)
    assert len(token) == 40
    assert open_admin_token(tmp_path) == token == read_admin_token(tmp_path)


def test_a_damaged_admin_token_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ADMIN_FILE).write_text("short")
    with pytest.raises(StartupError, match="remove it"):
        open_admin_token(tmp_path)


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be used"):
        open_secrets(tmp_path / "file")


def test_what_was_sealed_opens_again_for_the_same_purpose_only() -> None:
    sealed = ONE.encrypt("r8_key", "channel bfl")
    assert sealed != ONE.encrypt("r8_key", "channel bfl")
    assert ONE.decrypt(sealed, "channel bfl") == "r8_key"
    for other, purpose in ((ONE, "channel fal"), (Secrets(bytes(31) + b"1"), "channel bfl")):
        with pytest.raises(StartupError, match="cannot be read"):
            other.decrypt(sealed, purpose)
    with pytest.raises(StartupError, match="cannot be read"):
        ONE.decrypt("no base64!", "channel bfl")


async def test_servers_on_one_database_share_the_secret_of_the_first(
    postgresql: str, tmp_path: Path
) -> None:
    database = open_database(postgresql)
    await database.start()
    await database.run(_forget())
    alone = [open_secrets(tmp_path / name).link_secret for name in ("one", "two")]
    shared = [(await share_secrets(database, tmp_path / name)).link_secret for name in "ab"]
    assert shared[0] == shared[1] == open_secrets(tmp_path / "a").link_secret
    assert (await share_secrets(database, tmp_path / "two")).link_secret == shared[0]
    assert open_secrets(tmp_path / "two").link_secret == alone[1], "the own file stays"
    await database.run(_forget())
    await database.stop()


async def test_a_damaged_secret_in_the_database_stops_the_start(tmp_path: Path) -> None:
    database = open_database("sqlite://")
    await database.start()
    await database.run(_damage())
    with pytest.raises(StartupError, match="the row 'master secret'"):
        await share_secrets(database, tmp_path)
    await database.stop()


def _forget() -> Transition[None]:
    yield Statement(delete(tables.meta))({})


def _damage() -> Transition[None]:
    yield Statement(insert(tables.meta))({"name": SHARED_NAME, "value": "zz"})
