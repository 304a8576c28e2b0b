"""Cases for the official Python package `wavespeed` 2.0.5, unmodified."""

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
from urllib.parse import quote

import requests
from PIL import Image
from wavespeed import Client

SERVER, KEY, HOOK = os.environ["SERVER"], os.environ["KEY"], os.environ["HOOK"]
PHOTO = os.environ["PHOTO"]
BEARER = {"Authorization": f"Bearer {KEY}"}
DEV = "wavespeed-ai/flux-dev"
KONTEXT = "wavespeed-ai/flux-kontext-dev"
client = Client(KEY, base_url=SERVER)


def size(url: str) -> tuple[str | None, tuple[int, int]]:
    """Format and size of an output, fetched without a key."""
    answer = requests.get(url, timeout=30)
    assert answer.status_code == 200
    with Image.open(io.BytesIO(answer.content)) as image:
        return image.format, image.size


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    raise AssertionError("no error was raised")


def a_picture_is_made_by_polling() -> None:
    done = client.run(DEV, {"prompt": "a fox", "size": "512*256"}, poll_interval=0.1)
    assert size(done["outputs"][0]) == ("JPEG", (512, 256))


def several_pictures_are_made_in_sync_mode() -> None:
    inputs = {"prompt": "a fox", "num_images": 4, "size": "256*256", "output_format": "webp"}
    done = client.run(DEV, inputs, enable_sync_mode=True)
    assert [size(url)[0] for url in done["outputs"]] == ["WEBP"] * 4


def outputs_come_as_text_on_demand() -> None:
    inputs = {"prompt": "a fox", "size": "256*256", "enable_base64_output": True}
    done = client.run(DEV, inputs, enable_sync_mode=True)
    head, _, text = done["outputs"][0].partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(text)[:2] == b"\xff\xd8"


def a_file_is_uploaded_by_ticket_and_edited() -> None:
    url = client.upload(PHOTO)
    assert url.endswith("/photo.jpg")
    done = client.run(KONTEXT, {"prompt": "at night", "image": url}, poll_interval=0.1)
    assert size(done["outputs"][0]) == ("JPEG", (1248, 832))
    with open(PHOTO, "rb") as file:
        assert size(client.upload(file))[1] == (600, 400)
        file.seek(0)
        assert size(client.upload(io.BytesIO(file.read())))[1] == (600, 400)


def pictures_go_in_as_link_uri_and_text() -> None:
    with open(PHOTO, "rb") as file:
        text = base64.b64encode(file.read()).decode()
    pictures = [client.upload(PHOTO), f"data:image/jpeg;base64,{text}", text]
    client.run(f"{KONTEXT}/multi", {"prompt": "together", "images": pictures}, poll_interval=0.1)


def a_wait_that_is_too_short_names_the_task() -> None:
    inputs = {"prompt": "[[seconds=8]]"}
    result = client.run_no_throw(DEV, inputs, enable_sync_mode=True)
    assert result["status"] == "processing"
    assert "Sync mode timed out" in result["error"]
    data = client.get_result(result["task_id"])["data"]
    assert data["status"] in ("created", "processing")


def a_failed_task_is_not_submitted_again() -> None:
    before = total()
    result = client.run_no_throw(
        DEV,
        {"prompt": "[[outcome=fail error='HTTP 500 connection timeout']]"},
        poll_interval=0.1,
        max_retries=2,
    )
    assert result["status"] == "failed"
    assert "HTTP 5" not in result["error"]
    assert total() == before + 1


def total() -> int:
    url = f"{SERVER}/api/v3/predictions"
    answer = requests.post(url, json={"page_size": 1}, headers=BEARER, timeout=30)
    return int(answer.json()["data"]["total"])


def a_wrong_key_is_told_in_words() -> None:
    words = error_of(lambda: Client("wrong", base_url=SERVER).run(DEV, {"prompt": "a fox"}))
    assert "HTTP 401" in words
    assert "this API key is not valid here" in words


def a_bad_field_is_told_in_words() -> None:
    words = error_of(lambda: client.run(DEV, {"prompt": "a fox", "size": "1*1"}))
    assert "size must be between 256 and 1536 per dimension" in words
    words = error_of(lambda: client.run("wavespeed-ai/flux-9000", {"prompt": "a fox"}))
    assert "wavespeed-ai/flux-9000" in words


def a_webhook_comes_bare_and_signed() -> None:
    url = f"{SERVER}/api/v3/{DEV}?webhook={quote(HOOK, safe='')}"
    made = requests.post(url, json={"prompt": "a fox"}, headers=BEARER, timeout=30).json()["data"]
    message = requests.get(HOOK, timeout=40).json()
    body, headers = message["body"], message["headers"]
    assert (json.loads(body)["id"], json.loads(body)["status"]) == (made["id"], "completed")
    secret = requests.get(f"{SERVER}/api/v3/webhook/secret", headers=BEARER, timeout=30)
    key = secret.json()["data"]["secret"].removeprefix("whsec_").encode()
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
    digest = hmac.new(key, signed, hashlib.sha256).hexdigest()
    assert headers["webhook-signature"] == f"v3,{digest}"
    assert size(json.loads(body)["outputs"][0])[0] == "JPEG"


def a_task_is_the_same_in_other_dialects() -> None:
    done = client.run_no_throw(DEV, {"prompt": "a fox", "seed": 5}, poll_interval=0.1)
    id_ = done["task_id"]
    bfl = requests.get(f"{SERVER}/v1/get_result?id={id_}", timeout=30).json()
    assert (bfl["status"], bfl["result"]["seed"]) == ("Ready", 5)
    url = f"{SERVER}/v1/predictions/{id_}"
    assert requests.get(url, headers=BEARER, timeout=30).json()["status"] == "succeeded"
    body: dict[str, str | int] = {"prompt": "a fox", "seed": 6}
    made = requests.post(f"{SERVER}/v1/flux-dev", json=body, headers=BEARER, timeout=30).json()
    requests.get(f"{made['polling_url']}&wait=20", timeout=30)
    data = client.get_result(made["id"])["data"]
    assert (data["status"], data["model"]) == ("completed", "flux-dev")


CASES = [
    a_picture_is_made_by_polling,
    several_pictures_are_made_in_sync_mode,
    outputs_come_as_text_on_demand,
    a_file_is_uploaded_by_ticket_and_edited,
    pictures_go_in_as_link_uri_and_text,
    a_wait_that_is_too_short_names_the_task,
    a_failed_task_is_not_submitted_again,
    a_wrong_key_is_told_in_words,
    a_bad_field_is_told_in_words,
    a_webhook_comes_bare_and_signed,
    a_task_is_the_same_in_other_dialects,
]

for case in CASES:
    try:
        case()
        error = None
    except Exception:
        error = traceback.format_exc()
    sys.stdout.write(json.dumps({"case": case.__name__, "error": error}) + "\n")
