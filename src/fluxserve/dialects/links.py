"""Absolute links into this server: signed, expiring, made on the origin that the caller used."""

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from fluxserve.core.prediction import Prediction
from fluxserve.core.request import BlobRef

SIGNATURE_BYTES = 16
NAME_MAX = 100  # characters of an uploaded file's name
EXTENSION = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}


class Signer:
    """Makes and reads capability tokens: a blob key and an expiry under an HMAC."""

    def __init__(self, secret: bytes) -> None:
        self._keyed = hmac.new(secret, digestmod=hashlib.sha256)  # copied for each signature

    def token(self, key: str, expires_at: datetime) -> str:
        payload = int(expires_at.timestamp()).to_bytes(6) + key.encode()
        return _b64(self._mac(payload) + payload)

    def read(self, token: str, at: datetime) -> str | None:
        """The blob key in a token; None when it is forged, damaged or expired."""
        try:
            raw = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except (ValueError, binascii.Error):
            return None
        mac, payload = raw[:SIGNATURE_BYTES], raw[SIGNATURE_BYTES:]
        if len(payload) < 7 or not hmac.compare_digest(mac, self._mac(payload)):
            return None
        if at.timestamp() > int.from_bytes(payload[:6]):
            return None
        return payload[6:].decode()

    def sign(self, text: str) -> str:
        """A short signature of any text, for tokens that are looked up by other means."""
        return _b64(self._mac(text.encode()))

    def mac(self, text: str) -> bytes:
        """The same as bytes, 16 of them."""
        return self._mac(text.encode())

    def _mac(self, payload: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(payload)
        return mac.digest()[:SIGNATURE_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Where answers point to. `base` is scheme://host[:port], `mount` the prefix of the dialect."""

    base: str
    mount: str
    signer: Signer
    keep: timedelta = timedelta(days=7)  # how long files live; links live as long

    def to(self, path: str) -> str:
        """An absolute link to a path of the dialect, under the caller's own mount."""
        return f"{self.base}{self.mount}{path}"

    def root(self, path: str) -> str:
        return f"{self.base}{path}"

    def mounted(self, mount: str) -> "Links":
        return replace(self, mount=mount)

    def blob(self, ref: BlobRef, name: str, since: datetime | None = None) -> str:
        """A public link to stored bytes; `name` is what a client may save them as.

        `since` is when the file came to be: the same link is made at every poll.
        """
        expires_at = (since or datetime.now(UTC)) + self.keep
        return f"{self.base}/out/{self.signer.token(ref.key, expires_at)}/{name}"

    def outputs(self, prediction: Prediction, suffix: str = "") -> list[str]:
        """Links to the finished pictures, in order; `suffix` overrides the file extension."""
        since = prediction.finished_at
        return [
            self.blob(
                image.blob,
                f"out-{index}.{suffix or EXTENSION.get(image.blob.mime, 'bin')}",
                since,
            )
            for index, image in enumerate(prediction.outputs)
        ]


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def safe_name(name: str) -> str:
    """A file name that can stand in a URL path: its last part, plain characters, an extension."""
    stem, dot, extension = re.split(r"[/\\]", name)[-1].rpartition(".")
    if not dot:
        stem, extension = extension, ""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip("._") or "upload"
    extension = re.sub(r"[^A-Za-z0-9_-]+", "", extension)[:10]
    return f"{stem[: NAME_MAX - 11]}.{extension}" if extension else stem[:NAME_MAX]
