"""The four signatures, against vectors that official validators accepted."""

import base64
import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret
from standardwebhooks import Webhook

from fluxserve.core.ids import to_uuid
from fluxserve.core.request import WebhookSpec
from fluxserve.webhooks.javascript import to_json
from fluxserve.webhooks.signing import (
    Message,
    Scheme,
    Signer,
    jwks,
    sign_bfl,
    sign_fal,
    sign_standard,
    sign_wavespeed,
)
from tests.webhooks.material import KEY, SECRET, a_delivery, a_prediction

# Replicate's contract: one line of UTF-8, with a backslash and an n before its last quote.
REPLICATE_BODY = (
    '{"id":"k7x1example","status":"succeeded","output":"https://gw.example/out/a.png",'
    '"metrics":{"predict_time":2.5,"total_time":3},'
    '"logs":" 50%|█████     | 15/30 [00:01<00:01, 10.0it/s]\\n"}'
).encode()
REPLICATE_SECRET = "whsec_Zmx1eC1nYXRld2F5LWNvbnRyYWN0LXNlY3JldC0wMDE="
SIGNED_AT = datetime.fromtimestamp(1753772400, UTC)


def test_the_standard_signature_equals_the_vector() -> None:
    signature = sign_standard(REPLICATE_SECRET, "msg_contract_0001", SIGNED_AT, REPLICATE_BODY)
    assert signature == "v1,AuPxqHFLz5VmLKGYykW0xMYBfrRhQu6KFB5EEyXer5U="


def test_the_wavespeed_signature_equals_the_vector() -> None:
    at = datetime.fromtimestamp(1700000000, UTC)
    signature = sign_wavespeed("whsec_topsecret", "msg_1", at, b'{"id":"x"}')
    assert signature == "v3,d03556cbc1a273443e9c6ec5b19e7fb472f626893119498b144ccf2e8242e2af"


def test_the_bfl_signature_equals_the_vector() -> None:
    signature = sign_bfl("topsecret", b'{"id":"x"}')
    assert signature == "sha256=79aaf589857c9d79d922fcc2fa15ea9e697df76ec8fcef922b3f82519c5f5645"


def test_the_fal_signature_is_checked_with_the_published_key() -> None:
    at = datetime.fromtimestamp(1700000000, UTC)
    body = b'{"request_id":"r"}'
    signature = bytes.fromhex(sign_fal(KEY, "r", "default", at, body))
    document = jwks(KEY)
    assert isinstance(document, dict)
    (key,) = document["keys"]
    assert isinstance(key, dict)
    assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(f"{key['x']}="))
    text = f"r\ndefault\n1700000000\n{hashlib.sha256(body).hexdigest()}".encode()
    public.verify(signature, text)
    with pytest.raises(InvalidSignature):
        public.verify(signature, text + b"\n")


def test_the_fal_signature_does_not_change_by_itself() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    at = datetime.fromtimestamp(1700000000, UTC)
    assert sign_fal(key, "r", "u", at, b"{}") == (
        "2d3de0cf4d29996cb31df38316c1fc57c8d2162798784ce82de67cba7e5187a3"
        "c33f665df99899d49be0f0c95bc71ff8618f6459b8fd70072e8e287cc03e3306"
    )


async def nowhere(url: str) -> bool:
    return False


async def everywhere(url: str) -> bool:
    return True


def signer(*, is_inside: bool = False, sends_plain_secret: bool = True) -> Signer:
    return Signer(
        secret_of=lambda tenant: SECRET,
        key=KEY,
        is_inside=everywhere if is_inside else nowhere,
        sends_plain_secret=sends_plain_secret,
    )


async def test_standard_headers_pass_the_public_validator() -> None:
    delivery = a_delivery()
    message = Message(body='{"logs":"50%|█|"}'.encode())
    headers = await signer().headers(message, a_prediction(), delivery, datetime.now(UTC))
    assert headers["webhook-id"] == delivery.id
    assert Webhook(SECRET).verify(message.body, dict(headers)) == {"logs": "50%|█|"}


async def test_standard_headers_pass_replicates_own_validator() -> None:
    message = Message(body=to_json({"logs": "50%|█|", "metrics": {"predict_time": 2.0}}))
    signed = await signer().headers(message, a_prediction(), a_delivery(), datetime.now(UTC))
    secret = WebhookSigningSecret(key=SECRET)
    body = message.body.decode()
    Webhooks.validate(headers=dict(signed), body=body, secret=secret, tolerance=60)
    with pytest.raises(InvalidSignatureError):
        Webhooks.validate(headers=dict(signed), body=body + " ", secret=secret)


async def test_wavespeed_headers_have_the_same_names_and_another_value() -> None:
    message = Message(body=b"{}", scheme=Scheme.WAVESPEED)
    headers = await signer().headers(message, a_prediction(), a_delivery(), SIGNED_AT)
    assert headers["webhook-timestamp"] == "1753772400"
    assert headers["webhook-signature"].startswith("v3,")


async def test_fal_headers_name_the_request_and_the_user() -> None:
    prediction = a_prediction()
    message = Message(body=b"{}", scheme=Scheme.FAL)
    headers = await signer().headers(message, prediction, a_delivery(), SIGNED_AT)
    request_id = to_uuid(prediction.id)
    assert headers == {
        "X-Fal-Webhook-Request-Id": request_id,
        "X-Fal-Webhook-User-Id": "default",
        "X-Fal-Webhook-Timestamp": "1753772400",
        "X-Fal-Webhook-Signature": sign_fal(KEY, request_id, "default", SIGNED_AT, b"{}"),
    }


@pytest.mark.parametrize(
    ("url", "is_inside", "sends_plain_secret", "shows_secret"),
    [
        ("https://app.example/hook", False, True, True),
        ("http://app.example/hook", False, True, False),
        ("http://10.0.0.7/hook", True, True, True),
        ("https://app.example/hook", True, False, False),
    ],
)
async def test_the_plain_bfl_secret_goes_only_where_nobody_can_read_it_on_the_way(
    url: str, is_inside: bool, sends_plain_secret: bool, shows_secret: bool
) -> None:
    prediction = a_prediction(webhook=WebhookSpec(url=url, secret="topsecret"))
    message = Message(body=b'{"id":"x"}', scheme=Scheme.BFL)
    sign = signer(is_inside=is_inside, sends_plain_secret=sends_plain_secret)
    headers = await sign.headers(message, prediction, a_delivery(url=url), SIGNED_AT)
    assert headers["X-BFL-Signature"] == sign_bfl("topsecret", message.body)
    assert ("X-Webhook-Secret" in headers) == shows_secret
    assert headers.get("X-Webhook-Secret", "topsecret") == "topsecret"


async def test_without_a_secret_a_bfl_message_is_not_signed() -> None:
    prediction = a_prediction(webhook=WebhookSpec(url="https://app.example/hook"))
    message = Message(body=b"{}", scheme=Scheme.BFL)
    assert await signer().headers(message, prediction, a_delivery(), SIGNED_AT) == {}
