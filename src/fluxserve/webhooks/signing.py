"""How webhook messages are signed, in the four ways that receivers check.

standard    webhook-signature: v1,<base64>    HMAC-SHA256, the key decoded from base64
wavespeed   webhook-signature: v3,<hex>       HMAC-SHA256, the key taken as text
bfl         X-BFL-Signature: sha256=<hex>     HMAC-SHA256 of the body, secret of the request
fal         X-Fal-Webhook-Signature: <hex>    Ed25519, public key as a JWKS document
"""

import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from standardwebhooks import Webhook

from fluxserve.core.deliveries import Delivery
from fluxserve.core.ids import to_uuid
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import JSON

SECRET_PREFIX = "whsec_"


class Scheme(StrEnum):
    STANDARD = "standard"
    BFL = "bfl"
    WAVESPEED = "wavespeed"
    FAL = "fal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is to be sent, before it is signed."""

    body: bytes
    scheme: Scheme = Scheme.STANDARD
    headers: Mapping[str, str] = field(default_factory=dict)


def sign_standard(secret: str, id_: str, at: datetime, body: bytes) -> str:
    """`v1,` and the base64 of the MAC; `secret` is whsec_ and base64."""
    return Webhook(secret).sign(id_, at.astimezone(UTC), body.decode())


def sign_wavespeed(secret: str, id_: str, at: datetime, body: bytes) -> str:
    """`v3,` and the hex of the MAC; the text after whsec_ is the key itself."""
    key = secret.removeprefix(SECRET_PREFIX).encode()
    text = f"{id_}.{_seconds(at)}.".encode() + body
    return "v3," + hmac.new(key, text, hashlib.sha256).hexdigest()


def sign_bfl(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def sign_fal(
    key: Ed25519PrivateKey, request_id: str, user_id: str, at: datetime, body: bytes
) -> str:
    """Hex of the signature over id, user, time and the body's SHA-256, one a line."""
    lines = (request_id, user_id, _seconds(at), hashlib.sha256(body).hexdigest())
    return key.sign("\n".join(lines).encode()).hex()


def jwks(key: Ed25519PrivateKey) -> JSON:
    """The public key as receivers of fal's webhooks fetch it."""
    public = key.public_key().public_bytes_raw()
    x = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
    kid = hashlib.sha256(public).hexdigest()[:16]
    return {
        "keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x}]
    }


class Signer:
    """The headers that prove where a message comes from."""

    def __init__(
        self,
        *,
        secret_of: Callable[[str], str],
        key: Ed25519PrivateKey,
        is_inside: Callable[[str], Awaitable[bool]],
        sends_plain_secret: bool = True,
    ) -> None:
        """`secret_of(tenant_id)` is the account's secret (whsec_...), `key` signs for fal.

        `is_inside(url)` tells whether a URL lies in a network that the operator opened.
        """
        self._secret_of = secret_of
        self._key = key
        self._is_inside = is_inside
        self._sends_plain_secret = sends_plain_secret

    async def headers(
        self, message: Message, prediction: Prediction, delivery: Delivery, at: datetime
    ) -> Mapping[str, str]:
        """For one try at time `at`: a new try has a new time and a new signature."""
        tenant, body = prediction.origin.tenant_id, message.body
        match message.scheme:
            case Scheme.STANDARD:
                signature = sign_standard(self._secret_of(tenant), delivery.id, at, body)
                return _webhook_headers(delivery.id, at, signature)
            case Scheme.WAVESPEED:
                signature = sign_wavespeed(self._secret_of(tenant), delivery.id, at, body)
                return _webhook_headers(delivery.id, at, signature)
            case Scheme.BFL:
                return await self._bfl_headers(prediction, delivery, body)
            case Scheme.FAL:
                request_id = to_uuid(prediction.id)
                return {
                    "X-Fal-Webhook-Request-Id": request_id,
                    "X-Fal-Webhook-User-Id": tenant,
                    "X-Fal-Webhook-Timestamp": _seconds(at),
                    "X-Fal-Webhook-Signature": sign_fal(self._key, request_id, tenant, at, body),
                }

    async def _bfl_headers(
        self, prediction: Prediction, delivery: Delivery, body: bytes
    ) -> Mapping[str, str]:
        webhook = prediction.origin.webhook
        if webhook is None or not webhook.secret:
            return {}
        headers = {"X-BFL-Signature": sign_bfl(webhook.secret, body)}
        if self._sends_plain_secret and await self._is_private(delivery.url):
            headers["X-Webhook-Secret"] = webhook.secret
        return headers

    async def _is_private(self, url: str) -> bool:
        """Whether nobody on the way can read what is sent."""
        return urlsplit(url).scheme.lower() == "https" or await self._is_inside(url)


def _webhook_headers(id_: str, at: datetime, signature: str) -> Mapping[str, str]:
    return {
        "webhook-id": id_,
        "webhook-timestamp": _seconds(at),
        "webhook-signature": signature,
    }


def _seconds(at: datetime) -> str:
    return str(int(at.timestamp()))
