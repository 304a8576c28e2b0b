"""Cases for the official Python package `blackforest` 0.1.3, unmodified."""

import base64
import hashlib
import hmac
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable

import requests
from blackforest import BFLClient
from blackforest.client import BFLError
from blackforest.types.general.client_config import ClientConfig
from PIL import Image

SERVER, KEY, HOOK = os.environ["SERVER"], os.environ["KEY"], os.environ["HOOK"]
PHOTO = os.environ["PHOTO"]
client = BFLClient(KEY, base_url=SERVER)
SYNC = ClientConfig(sync=True, polling_interval=0.1)


def photo() -> str:
    with open(PHOTO, "rb") as file:
        return base64.b64encode(file.read()).decode()


def size(url: str) -> tuple[str | None, tuple[int, int]]:
    """Format and size of a sample, fetched without any credentials."""
    answer = requests.get(url, timeout=30)
    assert answer.status_code == 200
    with Image.open(io.BytesIO(answer.content)) as image:
        return image.format, image.size


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except BFLError as error:
        return str(error)
    raise AssertionError("no error was raised")


def a_task_is_polled_until_it_is_ready() -> None:
    task = client.generate("flux-pro-1.1", {"prompt": "a fox", "seed": 7})
    assert task.polling_url.startswith(f"{SERVER}/v1/get_result?id=")
    seen = set()
    while (status := client.get_task_status(task.id)).status != "Ready":
        seen.add(status.status)
        time.sleep(0.02)
    assert seen <= {"Pending"}
    assert status.result["seed"] == 7
    assert size(status.result["sample"]) == ("JPEG", (1024, 768))


def a_task_is_waited_for() -> None:
    done = client.generate("flux-dev", {"prompt": "a fox", "width": 512, "height": 256}, SYNC)
    assert size(done.result["sample"]) == ("JPEG", (512, 256))
    assert done.result["duration"] > 0


def an_unfinished_poll_is_held_for_a_moment() -> None:
    task = client.generate("flux-pro-1.1", {"prompt": "[[outcome=hold]]"})
    began = time.monotonic()
    assert client.get_task_status(task.id).status == "Pending"
    assert 0.2 < time.monotonic() - began < 2


def four_pictures_go_in_as_file_text_uri_and_link() -> None:
    first = client.generate("flux-kontext-pro", {"prompt": "edit", "input_image": PHOTO}, SYNC)
    assert size(first.result["sample"]) == ("PNG", (1248, 832))
    inputs = {
        "prompt": "together",
        "input_image": PHOTO,
        "input_image_2": photo(),
        "input_image_3": f"data:image/jpeg;base64,{photo()}",
        "input_image_4": first.result["sample"],
        "output_format": "jpeg",
        "aspect_ratio": "16:9",
    }
    done = client.generate("flux-kontext-pro", inputs, SYNC)
    assert size(done.result["sample"]) == ("JPEG", (1328, 800))


def the_other_endpoints_take_the_clients_own_defaults() -> None:
    for model in ("flux-pro", "flux-pro-1.1-ultra"):
        client.generate(model, {"prompt": "a fox"}, SYNC)
    fill = {"prompt": "a hat", "image": photo(), "mask": photo()}
    client.generate("flux-pro-1.0-fill", fill, SYNC)
    expand = {"prompt": "more", "image": photo(), "left": 64, "right": 64}
    done = client.generate("flux-pro-1.0-expand", expand, SYNC)
    assert size(done.result["sample"])[1] == (736, 400)


def usage_is_tracked() -> None:
    client.generate("flux-dev", {"prompt": "a fox"}, track_usage=True)


def a_wrong_key_is_told_in_words() -> None:
    stranger = BFLClient("wrong", base_url=SERVER)
    words = error_of(lambda: stranger.generate("flux-dev", {"prompt": "a fox"}))
    assert words == "API request failed: Not authenticated - Invalid Authentication"


def a_bad_picture_is_told_in_words() -> None:
    bad = {"prompt": "x", "input_image": base64.b64encode(b"no picture" * 20).decode()}
    words = error_of(lambda: client.generate("flux-kontext-pro", bad))
    assert words.startswith("API request failed: input_image: ")


def a_failure_has_its_reason() -> None:
    task = client.generate("flux-pro-1.1", {"prompt": "[[outcome=fail error='out of foxes']]"})
    while (status := client.get_task_status(task.id)).status == "Pending":
        time.sleep(0.02)
    assert (status.status, status.error) == ("Error", "out of foxes")


def a_webhook_comes_signed_with_its_secret() -> None:
    inputs = {"prompt": "a fox", "webhook_url": HOOK, "webhook_secret": "topsecret"}
    # The client's own models leave webhooks out, so its request method is called.
    task_id = client._request("POST", "v1/flux-kontext-pro", json=inputs)["id"]
    message = requests.get(HOOK, timeout=40).json()
    raw = message["body"].encode()
    body = json.loads(raw)
    assert (body["id"], body["task_id"], body["status"]) == (task_id, task_id, "Ready")
    assert body["result"]["sample"].startswith(f"{SERVER}/v1/out/")
    digest = hmac.new(b"topsecret", raw, hashlib.sha256).hexdigest()
    assert message["headers"]["x-bfl-signature"] == f"sha256={digest}"
    assert size(body["result"]["sample"])[0] == "PNG"


def a_task_is_the_same_in_other_dialects() -> None:
    done = client.generate("flux-pro-1.1", {"prompt": "a fox", "seed": 5}, SYNC)
    bearer = {"Authorization": f"Bearer {KEY}"}
    hex_ = done.id.replace("-", "")
    url = f"{SERVER}/api/v3/predictions/{hex_}/result"
    other = requests.get(url, headers=bearer, timeout=30).json()["data"]
    assert (other["status"], other["id"]) == ("completed", hex_)
    url = f"{SERVER}/v1/predictions/{done.id}"
    assert requests.get(url, headers=bearer, timeout=30).json()["status"] == "succeeded"


CASES = [
    a_task_is_polled_until_it_is_ready,
    a_task_is_waited_for,
    an_unfinished_poll_is_held_for_a_moment,
    four_pictures_go_in_as_file_text_uri_and_link,
    the_other_endpoints_take_the_clients_own_defaults,
    usage_is_tracked,
    a_wrong_key_is_told_in_words,
    a_bad_picture_is_told_in_words,
    a_failure_has_its_reason,
    a_webhook_comes_signed_with_its_secret,
    a_task_is_the_same_in_other_dialects,
]

for case in CASES:
    try:
        case()
        error = None
    except Exception:
        error = traceback.format_exc()
    sys.stdout.write(json.dumps({"case": case.__name__, "error": error}) + "\n")
