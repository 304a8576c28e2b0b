"""One master secret in the data directory, and a key derived from it for every purpose.

    master.key ──HKDF──> links · webhooks of a tenant · fal webhooks · provider keys at rest

Losing the file ends links that were handed out, makes receivers of webhooks fetch their secret
anew, and loses stored provider keys. It belongs in the backup, away from the database's copy.

Servers that share a database must agree on the secret: there the first to start writes its own
into the database, and all of them use that one.
"""

import base64
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import bindparam, select

from fluxserve.core.errors import StartupError
from fluxserve.storage import tables
from fluxserve.storage.database import Database, Statement, Transition
from fluxserve.storage.flushing import flush
from fluxserve.storage.transitions import insert_or_ignore

log = logging.getLogger(__name__)

MASTER_FILE = "master.key"
ADMIN_FILE = "admin.token"
MASTER_BYTES = 32
WEBHOOK_BYTES = 24  # as many as the Standard Webhooks libraries generate
NONCE_BYTES = 12  # what AES-GCM wants
SHARED_NAME = "master secret"  # its row in a shared database

SHARE = insert_or_ignore(tables.meta, "name")
SHARED = Statement(select(tables.meta.c.value).where(tables.meta.c.name == bindparam("called")))


class Secrets:
    """Keys derived from one master secret of 32 bytes; the same master gives the same keys."""

    def __init__(self, master: bytes) -> None:
        assert len(master) == MASTER_BYTES
        self._master = master

    def derive(self, purpose: str, size_bytes: int = 32) -> bytes:
        """Independent bytes for one purpose."""
        info = f"fluxserve {purpose}".encode()
        return HKDF(algorithm=SHA256(), length=size_bytes, salt=None, info=info).derive(
            self._master
        )

    @property
    def link_secret(self) -> bytes:
        """Signs the links to files."""
        return self.derive("links")

    def webhook_secret(self, tenant_id: str) -> str:
        """`whsec_` and the standard base64 of 24 bytes; stable."""
        secret = self.derive(f"webhooks of {tenant_id}", WEBHOOK_BYTES)
        return "whsec_" + base64.b64encode(secret).decode()

    @property
    def webhook_key(self) -> Ed25519PrivateKey:
        """Signs fal's webhooks; receivers fetch its public half."""
        return Ed25519PrivateKey.from_private_bytes(self.derive("fal webhooks"))

    def encrypt(self, text: str, purpose: str) -> str:
        """Base64 that only `decrypt` with the same purpose opens; another one every time."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = AESGCM(self.derive("keys at rest")).encrypt(nonce, text.encode(), purpose.encode())
        return base64.b64encode(nonce + sealed).decode()

    def decrypt(self, sealed: str, purpose: str) -> str:
        """StartupError when the master secret is not the one that sealed it."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            opened = AESGCM(self.derive("keys at rest")).decrypt(
                raw[:NONCE_BYTES], raw[NONCE_BYTES:], purpose.encode()
            )
        except (ValueError, InvalidTag) as error:
            raise StartupError(
                f"the stored secret of {purpose} cannot be read: "
                f"restore {MASTER_FILE} from the backup, or enter the secret again"
            ) from error
        return opened.decode()


def open_secrets(data_dir: Path) -> Secrets:
    """The master secret of a data directory, made when there is none yet."""
    return Secrets(_read_master(data_dir))


async def share_secrets(database: Database, data_dir: Path) -> Secrets:
    """The master secret of all servers on `database`: that of the first one's data directory."""
    text = await database.run(_share(_read_master(data_dir).hex()))
    master = _from_hex(text)
    if master is None:
        raise StartupError(
            "the master secret in the database is damaged: restore the database from the backup, "
            f"or delete the row {SHARED_NAME!r} of its table meta to start with a new secret"
        )
    return Secrets(master)


def _share(offered: str) -> Transition[str]:
    """What the database holds; `offered` where it held nothing."""
    yield SHARE({"name": SHARED_NAME, "value": offered})
    rows = yield SHARED({"called": SHARED_NAME})
    return str(rows[0][0])


def _read_master(data_dir: Path) -> bytes:
    text = _read_or_create(data_dir / MASTER_FILE, lambda: secrets.token_hex(MASTER_BYTES))
    master = _from_hex(text)
    if master is None:
        raise StartupError(
            f"{data_dir / MASTER_FILE} holds {MASTER_BYTES * 2} hex digits, or should: "
            "restore it from the backup, or remove it to start with a new secret"
        )
    return master


def _from_hex(text: str) -> bytes | None:
    try:
        master = bytes.fromhex(text)
    except ValueError:
        return None
    return master if len(master) == MASTER_BYTES else None


def open_admin_token(data_dir: Path) -> str:
    """What the command line shows to a running server on the same data directory."""
    token = _read_or_create(data_dir / ADMIN_FILE, lambda: secrets.token_hex(20))
    if len(token) < 40:
        raise StartupError(f"{data_dir / ADMIN_FILE} is damaged: remove it, a new one is made")
    return token


def read_admin_token(data_dir: Path) -> str | None:
    """The token that a server left in `data_dir`, or None."""
    try:
        return (data_dir / ADMIN_FILE).read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _read_or_create(path: Path, make: Callable[[], str]) -> str:
    """The one line in a file that only its owner may read."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path, make())
        if path.stat().st_mode & 0o077:
            log.warning("%s was readable by others; it is not any more", path)
            path.chmod(0o600)
        return path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        raise StartupError(
            f"{path} cannot be used ({error.strerror}): make it readable and writable for this "
            "user, or choose another directory with --data-dir"
        ) from error


def _create(path: Path, text: str) -> None:
    """Write a new private file whole or not at all; whoever comes second keeps the first's."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{text}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(draft, path)  # unlike a rename, this fails where the file exists
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    flush(path.parent)
