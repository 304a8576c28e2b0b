"""The Python client 1.0.7, unmodified, against a real server process."""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import replicate
from PIL import Image
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.webhook import InvalidSignatureError, Webhooks

from tests.clients.replicate.conftest import KONTEXT, PRO, SCHNELL, Served
from tests.clients.replicate.receiver import Receiver, receiving

HELD = "held back [[outcome=hold]]"


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[replicate.Client]:
    if served.ca:
        monkeypatch.setenv("SSL_CERT_FILE", served.ca)
    client = replicate.Client(api_token="r8_test", base_url=served.url)
    yield client
    client._client.close()


@pytest.fixture
async def loop_client(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[replicate.Client]:
    """The same for async calls, whose connections belong to the test's own loop."""
    if served.ca:
        monkeypatch.setenv("SSL_CERT_FILE", served.ca)
    client = replicate.Client(api_token="r8_test", base_url=served.url)
    yield client
    await client._async_client.aclose()


def _picture(output: Any) -> Image.Image:
    assert isinstance(output, FileOutput)
    return Image.open(io.BytesIO(output.read()))


def test_run_edits_an_open_file(client: replicate.Client, photo: Path) -> None:
    with photo.open("rb") as file:
        output = client.run(
            KONTEXT,
            input={"prompt": "make it grayscale", "input_image": file, "output_format": "jpg"},
        )
    image = _picture(output)
    assert (image.format, image.size) == ("JPEG", (1248, 832))


def test_run_takes_bytes_a_path_and_a_data_uri(client: replicate.Client, photo: Path) -> None:
    inline = "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()
    for picture in (io.BytesIO(photo.read_bytes()), photo, inline):
        output = client.run(KONTEXT, input={"prompt": "snow", "input_image": picture})
        assert _picture(output).format == "WEBP"


def test_run_sends_files_inline_when_told(client: replicate.Client, photo: Path) -> None:
    with photo.open("rb") as file:
        output = client.run(
            KONTEXT,
            input={"prompt": "snow", "input_image": file},
            file_encoding_strategy="base64",
        )
    assert _picture(output).size == (1248, 832)


def test_a_list_model_gives_a_list(client: replicate.Client) -> None:
    output = client.run(SCHNELL, input={"prompt": "a fox", "num_outputs": 2})
    assert isinstance(output, list)
    assert [_picture(item).size for item in output] == [(1024, 1024)] * 2


def test_run_with_a_version_asks_for_it_afterwards(client: replicate.Client) -> None:
    version = client.models.get(PRO).latest_version
    assert version is not None
    output = client.run(f"{PRO}:{version.id}", input={"prompt": "a fox"})
    assert _picture(output).size == (1024, 1024)


def test_run_polls_when_the_wait_was_too_short(client: replicate.Client) -> None:
    before = len(client.predictions.list().results)
    prompt = "slow [[seconds=2]]"
    output = client.run(PRO, input={"prompt": prompt}, wait=1)
    assert _picture(output).size == (1024, 1024)
    after = client.predictions.list().results
    assert [item.input.get("prompt") for item in after].count(prompt) == 1 or before >= 100


def test_a_failed_model_raises_with_its_text(client: replicate.Client) -> None:
    with pytest.raises(ModelError, match="out of foxes") as caught:
        client.run(PRO, input={"prompt": "[[outcome=fail error='out of foxes']]"})
    assert caught.value.prediction.status == "failed"


def test_progress_is_read_from_the_log(client: replicate.Client) -> None:
    prediction = client.predictions.create(
        model=PRO, input={"prompt": "slow [[seconds=1 steps=10]]"}
    )
    assert prediction.status == "starting"
    seen = set()
    while prediction.status not in ("succeeded", "failed", "canceled"):
        prediction.reload()
        if prediction.progress:
            seen.add(prediction.progress.current)
    assert prediction.logs is not None
    assert prediction.logs.startswith("Using seed: ")
    assert prediction.progress is not None
    assert prediction.progress.percentage == 1.0
    assert len(seen) > 2


def test_cancel_in_mid_flight_is_answered_at_once(client: replicate.Client) -> None:
    prediction = client.predictions.create(model=PRO, input={"prompt": "slow [[seconds=60]]"})
    while prediction.status == "starting":
        prediction.reload()
    assert prediction.status == "processing"
    prediction.cancel()
    assert prediction.status == "canceled"
    assert prediction.completed_at is not None
    assert prediction.metrics is not None
    assert client.predictions.cancel(prediction.id).status == "canceled"


def test_pages_are_walked_without_gap_or_double(client: replicate.Client) -> None:
    made = [client.predictions.create(model=PRO, input={"prompt": HELD}).id for _ in range(130)]
    seen: list[str] = []
    for page in _pages(client):
        seen += [item.id for item in page]
    assert len(seen) == len(set(seen))
    assert [id_ for id_ in seen if id_ in set(made)] == made[::-1]


def _pages(client: replicate.Client) -> Iterator[list[Any]]:
    page = client.predictions.list()
    yield page.results
    while page.next:
        page = client.predictions.list(page.next)
        yield page.results


def test_a_walk_goes_back_by_previous(client: replicate.Client) -> None:
    first = client.predictions.list()
    assert first.previous is None
    assert first.next is not None
    second = client.predictions.list(first.next)
    assert second.previous is not None
    again = client.predictions.list(second.previous)
    assert [item.id for item in again.results] == [item.id for item in first.results]


def test_stream_yields_files_then_done(client: replicate.Client) -> None:
    events = list(client.stream(SCHNELL, input={"prompt": "a fox", "num_outputs": 2}))
    assert [event.event.value for event in events] == ["output", "output", "done"]
    assert all(event.id for event in events)
    data: Any = events[0].data
    answer = client._client.get(str(data))  # a FileOutput over https, a string over http
    assert answer.headers["content-type"] == "image/webp"


def test_files_are_uploaded_listed_read_and_deleted(client: replicate.Client, photo: Path) -> None:
    file = client.files.create(photo, metadata={"place": "here"})
    assert (file.name, file.content_type) == ("photo.jpg", "image/jpeg")
    assert file.size == photo.stat().st_size
    assert file.metadata == {"place": "here"}
    assert client.files.get(file.id).checksums == file.checksums
    assert file.id in [item.id for item in client.files.list()]
    output = client.run(KONTEXT, input={"prompt": "snow", "input_image": file.urls["get"]})
    assert _picture(output).size == (1248, 832)
    client.files.delete(file.id)
    with pytest.raises(ReplicateError, match="could not be found"):
        client.files.get(file.id)


def test_models_collections_account_hardware_and_secret_are_read(
    client: replicate.Client,
) -> None:
    model = client.models.get(KONTEXT)
    assert model.latest_version is not None
    assert model.latest_version.cog_version == "0.16.0"
    assert model.latest_version.openapi_schema["components"]["schemas"]["Input"]
    assert KONTEXT in [f"{item.owner}/{item.name}" for item in client.models.list().results]
    assert client.models.search("kontext").results
    assert model.versions.get(model.latest_version.id).id == model.latest_version.id
    assert client.collections.list().results
    assert client.collections.get("text-to-image").models
    assert client.hardware.list()
    assert client.accounts.current().username == "default"
    assert client.deployments.list().results
    assert client.trainings.list().results == []
    assert client.webhooks.default.secret().key.startswith("whsec_")


def test_a_deployment_runs(client: replicate.Client) -> None:
    deployment = client.deployments.get(SCHNELL)
    prediction = deployment.predictions.create(input={"prompt": "a fox"})
    prediction.wait()
    assert prediction.status == "succeeded"
    assert isinstance(prediction.output, list)


def test_bad_input_is_told_by_field(client: replicate.Client) -> None:
    with pytest.raises(ReplicateError) as caught:
        client.run(SCHNELL, input={"num_inference_steps": 10})
    assert caught.value.status == 422
    assert "- input: prompt is required\n- input.num_inference_steps" in str(caught.value.detail)


async def test_many_at_once_through_the_async_client(
    loop_client: replicate.Client, photo: Path
) -> None:
    data = await asyncio.to_thread(photo.read_bytes)

    async def one(number: int) -> tuple[int, int]:
        picture = io.BytesIO(data)
        output: Any = await loop_client.async_run(
            KONTEXT, input={"prompt": f"number {number}", "input_image": picture}
        )
        return Image.open(io.BytesIO(await output.aread())).size

    sizes = await asyncio.gather(*(one(number) for number in range(8)))
    assert sizes == [(1248, 832)] * 8


async def test_the_async_stream_and_pages(loop_client: replicate.Client) -> None:
    stream = await loop_client.async_stream(SCHNELL, input={"prompt": "a fox"})
    assert [event.event.value async for event in stream] == ["output", "done"]
    page = await loop_client.predictions.async_list()
    assert page.results[0].model == SCHNELL


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def test_a_webhook_passes_the_clients_own_validator(
    client: replicate.Client, receiver: Receiver
) -> None:
    prediction = client.predictions.create(
        model=PRO,
        input={"prompt": "für Elise", "guidance": 3.0},
        webhook=receiver.url,
        webhook_events_filter=["start", "completed"],
    )
    secret = client.webhooks.default.secret()
    statuses = []
    for _ in range(2):
        headers, body = receiver.take()
        Webhooks.validate(headers=headers, body=body, secret=secret, tolerance=60)
        with pytest.raises(InvalidSignatureError):
            Webhooks.validate(headers=headers, body=body + " ", secret=secret)
        told = json.loads(body)
        assert told["id"] == prediction.id
        statuses.append(told["status"])
    assert statuses == ["processing", "succeeded"]
    prediction.reload()
    assert told["output"] == httpx.URL(told["output"])
    assert told["metrics"] == prediction.metrics


def test_a_wait_ends_before_the_clients_read_timeout(client: replicate.Client) -> None:
    """1.0.7 reads for half a second more than it asks to wait."""
    began = time.monotonic()
    prediction = client.predictions.create(version=PRO, input={"prompt": HELD + " once"}, wait=2)
    assert prediction.status == "starting"
    assert 1.0 < time.monotonic() - began < 2.4
    listed = [item.input.get("prompt") for item in client.predictions.list().results]
    assert listed.count(HELD + " once") == 1
