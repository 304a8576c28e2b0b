"""Cases for the Python client 2.0.0b4, unmodified; run in a process of its own.

Prints one JSON line a case: {"name": ..., "error": null | text}. SERVER is the origin, PHOTO a
JPEG of 300 x 200.
"""

import asyncio
import base64
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERVER = os.environ["SERVER"]
PHOTO = Path(os.environ["PHOTO"])
os.environ["REPLICATE_BASE_URL"] = SERVER + "/v1"
os.environ["REPLICATE_API_TOKEN"] = "r8_test"

import pytest  # noqa: E402
import replicate  # noqa: E402
from PIL import Image  # noqa: E402
from replicate.exceptions import ModelError  # noqa: E402
from replicate.lib._files import FileOutput  # noqa: E402

KONTEXT = "black-forest-labs/flux-kontext-dev"
SCHNELL = "black-forest-labs/flux-schnell"
PRO = "black-forest-labs/flux-pro"
CLIENT: Any = replicate.Replicate()


def size_of(output: Any) -> tuple[int, int]:
    assert isinstance(output, FileOutput), output
    return Image.open(io.BytesIO(output.read())).size


def run_edits_an_open_file() -> None:
    with PHOTO.open("rb") as file:
        output = CLIENT.run(KONTEXT, input={"prompt": "make it grayscale", "input_image": file})
    assert size_of(output) == (1248, 832)


def run_takes_bytes_and_a_data_uri() -> None:
    uri = "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()
    for picture in (io.BytesIO(PHOTO.read_bytes()), uri):
        output = CLIENT.run(KONTEXT, input={"prompt": "snow", "input_image": picture})
        assert size_of(output) == (1248, 832)


def a_list_model_gives_a_list() -> None:
    output = CLIENT.run(SCHNELL, input={"prompt": "a fox", "num_outputs": 2})
    assert [size_of(item) for item in output] == [(1024, 1024)] * 2


def use_reads_the_schema_and_downloads() -> None:
    with PHOTO.open("rb") as file:
        path = replicate.use(KONTEXT)(prompt="snow", input_image=file)
    assert str(path).endswith(".webp"), path
    assert Image.open(path).size == (1248, 832)
    paths: Any = replicate.use(SCHNELL)(prompt="a fox", num_outputs=2)
    assert [Image.open(path).size for path in paths] == [(1024, 1024)] * 2


def a_read_timeout_makes_no_second_job() -> None:
    prompt = f"patience {time.time()} [[seconds=5]]"
    client = replicate.Replicate(timeout=4)
    output = client.run(PRO, input={"prompt": prompt})
    assert size_of(output) == (1024, 1024)
    listed = [item.input.get("prompt") for item in CLIENT.predictions.list().results]
    assert listed.count(prompt) == 1, listed


def a_failed_model_raises() -> None:
    with pytest.raises(ModelError, match="out of foxes"):
        CLIENT.run(PRO, input={"prompt": "[[outcome=fail error='out of foxes']]"})


def cancel_in_mid_flight_is_answered_at_once() -> None:
    made = CLIENT.models.predictions.create(
        model_owner="black-forest-labs",
        model_name="flux-pro",
        input={"prompt": "slow [[seconds=60]]"},
    )
    assert made.status == "starting"
    assert CLIENT.predictions.cancel(prediction_id=made.id).status == "canceled"


def pages_are_walked_by_iteration() -> None:
    for _ in range(110):
        CLIENT.predictions.create(version=PRO, input={"prompt": "held [[outcome=hold]]"})
    ids = [item.id for item in CLIENT.predictions.list()]
    assert len(ids) == len(set(ids)) >= 110


def files_are_created_listed_and_deleted() -> None:
    file = CLIENT.files.create(content=PHOTO.read_bytes(), filename="photo.jpg")
    assert file.content_type == "image/jpeg", file
    assert CLIENT.files.get(file_id=file.id).checksums.sha256 == file.checksums.sha256
    assert file.id in [item.id for item in CLIENT.files.list()]
    CLIENT.files.delete(file_id=file.id)
    with pytest.raises(replicate.NotFoundError, match="could not be found"):
        CLIENT.files.get(file_id=file.id)


def models_search_and_the_rest_are_read() -> None:
    model = CLIENT.models.get(model_owner="black-forest-labs", model_name="flux-kontext-dev")
    assert model.latest_version
    assert len(list(CLIENT.models.list())) > 5
    assert next(iter(CLIENT.models.search(body="kontext max"))).name == "flux-kontext-max"
    assert CLIENT.account.get().username == "default"
    assert CLIENT.hardware.list()
    assert list(CLIENT.collections.list())
    assert list(CLIENT.deployments.list())
    assert list(CLIENT.trainings.list()) == []
    assert CLIENT.webhooks.default.secret.get().key.startswith("whsec_")
    assert CLIENT.search(query="kontext").models


def bad_input_is_told_by_field() -> None:
    with pytest.raises(replicate.UnprocessableEntityError, match="- input: prompt is required"):
        CLIENT.run(SCHNELL, input={"num_inference_steps": 10})


def the_async_client_runs_many_at_once() -> None:
    picture = PHOTO.read_bytes()

    async def work() -> None:
        client: Any = replicate.AsyncReplicate()

        async def one(number: int) -> tuple[int, int]:
            output = await client.run(
                KONTEXT, input={"prompt": f"{number}", "input_image": io.BytesIO(picture)}
            )
            return Image.open(io.BytesIO(await output.read())).size

        assert await asyncio.gather(*(one(number) for number in range(5))) == [(1248, 832)] * 5
        ids = [item.id async for item in await client.predictions.list()]
        assert len(ids) == len(set(ids)) >= 5

    asyncio.run(work())


CASES: list[Callable[[], None]] = [
    run_edits_an_open_file,
    run_takes_bytes_and_a_data_uri,
    a_list_model_gives_a_list,
    use_reads_the_schema_and_downloads,
    a_read_timeout_makes_no_second_job,
    a_failed_model_raises,
    cancel_in_mid_flight_is_answered_at_once,
    pages_are_walked_by_iteration,
    files_are_created_listed_and_deleted,
    models_search_and_the_rest_are_read,
    bad_input_is_told_by_field,
    the_async_client_runs_many_at_once,
]

for case in CASES:
    said = None
    try:
        case()
    except Exception:
        said = traceback.format_exc()
    sys.stdout.write(json.dumps({"name": case.__name__, "error": said}) + "\n")
    sys.stdout.flush()
