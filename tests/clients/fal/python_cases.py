"""Cases for the official Python package `fal-client` 1.0.3, unmodified."""

import asyncio
import base64
import hashlib
import io
import json
import os
import ssl
import sys
import traceback
from collections.abc import Callable

import fal_client
import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from PIL import Image

SERVER, KEY, HOOK = os.environ["SERVER"], os.environ["KEY"], os.environ["HOOK"]
TRUSTED = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
http = httpx.Client(verify=TRUSTED, headers={"Authorization": f"Key {KEY}"}, timeout=60)
DEV = "fal-ai/flux/dev"
SMALL = {"prompt": "a fox", "image_size": "square"}


def size(url: str) -> tuple[str | None, tuple[int, int]]:
    """Format and size of an output."""
    if url.startswith("data:"):
        data = base64.b64decode(url.partition(",")[2])
    else:
        data = httpx.get(url, verify=TRUSTED, timeout=30).content
    with Image.open(io.BytesIO(data)) as image:
        return image.format, image.size


def error_of(call: Callable[[], object]) -> fal_client.FalClientHTTPError:
    try:
        call()
    except fal_client.FalClientHTTPError as error:
        return error
    raise AssertionError("no error was raised")


def subscribe_tells_of_its_progress() -> None:
    seen: list[fal_client.Status] = []
    words = {**SMALL, "prompt": "a fox [[seconds=1]]"}
    done = fal_client.subscribe(DEV, words, with_logs=True, on_queue_update=seen.append)
    assert size(done["images"][0]["url"]) == ("JPEG", (512, 512))
    assert isinstance(seen[-1], fal_client.Completed)
    running = [one for one in seen if isinstance(one, fal_client.InProgress) and one.logs]
    assert any("%" in entry["message"] for one in running for entry in one.logs or [])


def a_request_is_submitted_polled_and_fetched() -> None:
    handle = fal_client.submit(DEV, {**SMALL, "seed": 5})
    for event in handle.iter_events(with_logs=True):
        assert isinstance(event, fal_client.Queued | fal_client.InProgress | fal_client.Completed)
    done = handle.get()
    assert done["seed"] == 5
    assert fal_client.result(DEV, handle.request_id) == done
    status = fal_client.status(DEV, handle.request_id, with_logs=True)
    assert isinstance(status, fal_client.Completed)
    assert status.metrics["inference_time"] > 0
    assert status.logs


def a_request_is_cancelled() -> None:
    handle = fal_client.submit(DEV, {"prompt": "[[seconds=60]]"})
    handle.cancel()
    status = handle.status()
    assert isinstance(status, fal_client.Completed)
    assert "cancelled" in str(error_of(handle.get).response.text)
    assert error_of(handle.cancel).status_code == 400


def run_waits_for_pictures_of_pictures() -> None:
    with Image.open(os.environ["PHOTO"]) as photo:
        uri = fal_client.encode_image(photo)
    words = {"prompt": "at night", "image_url": uri, "num_images": 2, "output_format": "png"}
    done = fal_client.run("fal-ai/flux-kontext/dev", words)
    assert [size(image["url"])[0] for image in done["images"]] == ["PNG", "PNG"]
    again = fal_client.run(DEV, {**SMALL, "sync_mode": True})
    assert size(again["images"][0]["url"]) == ("JPEG", (512, 512))


def stream_ends_with_the_whole_output() -> None:
    words = {**SMALL, "prompt": "a fox [[steps=28]]"}
    events = list(fal_client.stream(DEV, words))
    assert len(events) > 1
    assert all(event["images"][0]["url"].startswith("data:") for event in events[:-1])
    assert size(events[-1]["images"][0]["url"]) == ("JPEG", (512, 512))


def errors_say_what_is_wrong() -> None:
    error = error_of(lambda: fal_client.run(DEV, {"prompt": "x", "num_images": 9}))
    assert error.status_code == 422
    assert error.response.json()["detail"][0]["loc"] == ["body", "num_images"]
    handle = fal_client.submit(DEV, {"prompt": "[[outcome=fail error='out of foxes']]"})
    error = error_of(handle.get)
    assert (error.status_code, error.response.json()["detail"]) == (500, "out of foxes")
    assert error_of(lambda: fal_client.run("fal-ai/nothing", {"prompt": "x"})).status_code == 404
    stranger = fal_client.SyncClient(key="wrong")
    assert error_of(lambda: stranger.run(DEV, SMALL)).status_code == 401


def a_time_to_start_is_kept() -> None:
    def run() -> object:
        return fal_client.run(DEV, {"prompt": "[[outcome=hold]]"}, start_timeout=1.5)

    error = error_of(run)
    assert error.status_code == 504
    assert error.response.headers["X-Fal-Request-Timeout-Type"] == "user"


def a_webhook_is_signed() -> None:
    handle = fal_client.submit(DEV, SMALL, webhook_url=HOOK)
    message = httpx.get(HOOK, timeout=40).json()
    body, headers = json.loads(message["body"]), message["headers"]
    assert (body["request_id"], body["status"]) == (handle.request_id, "OK")
    assert size(body["payload"]["images"][0]["url"])[0] == "JPEG"
    key = http.get(f"{SERVER}/.well-known/jwks.json").json()["keys"][0]["x"]
    digest = hashlib.sha256(message["body"].encode()).hexdigest()
    names = ("request-id", "user-id", "timestamp")
    signed = "\n".join([*(headers[f"x-fal-webhook-{name}"] for name in names), digest])
    signature = bytes.fromhex(headers["x-fal-webhook-signature"])
    raw = base64.urlsafe_b64decode(key + "=")
    Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed.encode())


def a_request_is_the_same_in_other_dialects() -> None:
    handle = fal_client.submit(DEV, SMALL)
    handle.get()
    other = http.get(
        f"{SERVER}/v1/predictions/{handle.request_id}", headers={"Authorization": f"Bearer {KEY}"}
    )
    assert other.json()["status"] == "succeeded"
    body = {"input": {"prompt": "a fox"}}
    path = f"{SERVER}/v1/models/black-forest-labs/flux-schnell/predictions"
    bearer = {"Authorization": f"Bearer {KEY}"}
    made = http.post(path, json=body, headers=bearer).json()
    wait = fal_client.SyncClient().get_handle("fal-ai/flux/schnell", made["id"])
    assert wait.get()["prompt"] == "a fox"


def the_async_client_works_alike() -> None:
    async def ask() -> None:
        client = fal_client.AsyncClient()
        one, two = await asyncio.gather(client.subscribe(DEV, SMALL), client.run(DEV, SMALL))
        assert one["images"]
        assert two["images"]
        events = [event async for event in client.stream(DEV, SMALL)]
        assert events[-1]["prompt"] == "a fox"

    asyncio.run(ask())


CASES = [
    subscribe_tells_of_its_progress,
    a_request_is_submitted_polled_and_fetched,
    a_request_is_cancelled,
    run_waits_for_pictures_of_pictures,
    stream_ends_with_the_whole_output,
    errors_say_what_is_wrong,
    a_time_to_start_is_kept,
    a_webhook_is_signed,
    a_request_is_the_same_in_other_dialects,
    the_async_client_works_alike,
]

for case in CASES:
    try:
        case()
        error = None
    except Exception:
        error = traceback.format_exc()
    sys.stdout.write(json.dumps({"case": case.__name__, "error": error}) + "\n")
