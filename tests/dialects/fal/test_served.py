"""The fal dialect over HTTP: streams, webhooks' bodies, keys, uploads, repeated submits."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.app import House
from fluxserve.core.errors import Conflict
from fluxserve.core.prediction import Prediction
from fluxserve.core.service import PredictionService
from fluxserve.dialects.fal import DIALECT
from tests.dialects.served import client_of, format_of, house_on, png, size_of

RUN = "/fal/run/fal-ai/flux/dev"
QUEUE = "/fal/queue/fal-ai/flux/dev"
SMALL = {"prompt": "a fox", "image_size": "square"}
PHOTO = "data:image/png;base64," + base64.b64encode(png(320, 256)).decode()


async def done(client: httpx.AsyncClient, path: str, **more: Any) -> httpx.Response:
    answer = await client.post(path, **more)
    assert answer.status_code == 200, answer.text
    return answer


async def made(house: House, answer: httpx.Response) -> Prediction:
    return await house.predictions.get(answer.headers["x-fal-request-id"].replace("-", ""))


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
    return [json.loads(line[5:]) for line in lines]


async def test_a_streamed_run_has_previews_and_then_the_output(tmp_path: Path) -> None:
    async with (
        house_on(tmp_path, {"simulator": {"steps": 28, "seconds": 0.3}}) as house,
        client_of(house) as client,
    ):
        events = events_of(await done(client, f"{RUN}/stream", json=SMALL))
        assert len(events) == 5
        assert events[0]["images"][0]["url"].startswith("data:image/jpeg;base64,")
        picture = await client.get(events[-1]["images"][0]["url"])
        assert (format_of(picture.content), size_of(picture.content)) == ("JPEG", (512, 512))


async def test_a_stream_that_fails_ends_with_the_error(client: httpx.AsyncClient) -> None:
    body = {"prompt": "[[outcome=fail error='out of foxes']]"}
    events = events_of(await done(client, f"{RUN}/stream", json=body))
    assert (events[-1]["detail"], events[-1]["error_type"]) == (
        "out of foxes",
        "internal_server_error",
    )


async def test_a_status_stream_tells_every_change(client: httpx.AsyncClient) -> None:
    made = (await done(client, QUEUE, json={**SMALL, "prompt": "[[seconds=0.3]]"})).json()
    events = events_of(await client.get(made["status_url"] + "/stream", params={"logs": "1"}))
    seen = list(dict.fromkeys(event["status"] for event in events))
    assert seen[-2:] == ["IN_PROGRESS", "COMPLETED"]
    assert all("logs" in event and event["request_id"] == made["request_id"] for event in events)
    assert events[-1]["metrics"]["inference_time"] > 0


async def test_a_webhook_says_what_the_result_says(house: House, client: httpx.AsyncClient) -> None:
    answer = await done(client, RUN, json={**SMALL, "num_images": 2})
    prediction = await made(house, answer)
    links = house.services.links_on("http://flux.test", "/fal")
    body = DIALECT.render(prediction, links)
    assert isinstance(body, dict)
    assert (body["status"], body["error"]) == ("OK", None)
    assert body["payload"] == answer.json()
    assert body["request_id"] == answer.headers["x-fal-request-id"]
    failed = await client.post(RUN, json={"prompt": "[[outcome=fail error='out of foxes']]"})
    body = DIALECT.render(await made(house, failed), links)
    assert isinstance(body, dict)
    assert (body["status"], body["error"]) == ("ERROR", "out of foxes")
    assert body["payload"] == {"detail": "out of foxes"}


async def test_the_inputs_of_an_app_reach_the_model(
    house: House, client: httpx.AsyncClient
) -> None:
    cases: list[tuple[str, dict[str, Any], tuple[str, int, int, int, float]]] = [
        ("flux/dev", {}, ("text_to_image", 1024, 768, 28, 3.5)),
        ("flux/schnell", {"image_size": "portrait_16_9"}, ("text_to_image", 576, 1024, 4, 3.5)),
        (
            "flux/dev/image-to-image",
            {"image_url": PHOTO, "strength": 0.5},
            ("image_to_image", 320, 256, 40, 3.5),
        ),
        (
            "flux-kontext/dev",
            {"image_url": PHOTO, "resolution_mode": "1:1"},
            ("edit", 1024, 1024, 28, 2.5),
        ),
        (
            "flux-pro/kontext/text-to-image",
            {"aspect_ratio": "21:9", "guidance_scale": "7"},
            ("text_to_image", 1568, 672, 28, 7.0),
        ),
        (
            "simulator",
            {"image_size": {"width": 96, "height": 64}, "num_inference_steps": 9},
            ("text_to_image", 96, 64, 9, 3.5),
        ),
    ]
    for app, body, expected in cases:
        answer = await done(client, f"/fal/run/fal-ai/{app}", json={"prompt": "x", **body})
        got = (await made(house, answer)).request
        found = (got.task.value, got.width, got.height, got.num_steps, got.guidance)
        assert found == expected, app


async def test_a_key_is_taken_in_both_spellings_and_opens_its_own_requests(tmp_path: Path) -> None:
    async with house_on(tmp_path) as house:
        _, mine = await house.keyring.create()
        _, other = await house.keyring.create()
        async with client_of(house) as client:
            answer = await done(client, RUN, json=SMALL, headers={"Authorization": f"Key {mine}"})
            path = f"/fal/queue/fal-ai/flux/requests/{answer.headers['x-fal-request-id']}"
            for word, code in [
                (f"Bearer {mine}", 200),
                (f"key {mine}", 200),
                (f"Key {other}", 404),
                ("Key nobody:knows", 401),
                ("", 401),
            ]:
                answer = await client.get(path, headers={"Authorization": word})
                assert answer.status_code == code, word
                assert isinstance(answer.json().get("detail", ""), str)
            answer = await client.put(f"{path}/cancel", headers={"Authorization": f"Key {other}"})
            assert answer.json() == {"status": "NOT_FOUND"}


async def test_an_upload_is_an_input_afterwards(house: House, client: httpx.AsyncClient) -> None:
    target = "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3"
    words = {"file_name": "photo.png", "content_type": "image/png"}
    links = (
        await done(client, "/fal/proxy", json=words, headers={"x-fal-target-url": target})
    ).json()
    preflight = await client.options(links["upload_url"])
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert (await client.put(links["upload_url"], content=png(320, 256))).status_code == 200
    body = {"prompt": "at night", "image_url": links["file_url"]}
    answer = await done(client, "/fal/run/fal-ai/flux-kontext/dev", json=body)
    assert answer.json()["images"][0]["width"] == 1104


async def test_a_submit_with_a_name_is_made_once(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "mine"}
    one = await done(client, QUEUE, json=SMALL, headers=headers)
    two = await done(client, QUEUE, json=SMALL, headers=headers)
    assert one.json()["request_id"] == two.json()["request_id"]


async def test_a_request_waits_in_the_queue_at_its_place(tmp_path: Path) -> None:
    async with (
        house_on(tmp_path, {"simulator": {"outcome": "hold"}}) as house,
        client_of(house) as client,
    ):
        await done(client, QUEUE, json=SMALL)
        second = (await done(client, QUEUE, json=SMALL)).json()
        assert second["queue_position"] == 1
        status = await client.get(second["status_url"])
        assert status.status_code == 202
        body = status.json()
        assert (body["status"], body["queue_position"]) == ("IN_QUEUE", 1)


async def test_a_run_that_takes_too_long_goes_on_in_the_queue(tmp_path: Path) -> None:
    flags = {"openai": {"wait_max_s": 0.1}, "simulator": {"outcome": "hold"}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        answer = await client.post(RUN, json=SMALL)
        assert answer.status_code == 504
        assert answer.headers["X-Fal-Request-Timeout-Type"] == "user"
        assert (await made(house, answer)).status == "queued"


async def assert_expires_in_time(folder: Path) -> None:
    """A run that nobody starts ends when the time that its caller gave it is over."""
    async with (
        house_on(folder, {"simulator": {"outcome": "hold"}}) as house,
        client_of(house) as client,
    ):
        headers = {"X-Fal-Request-Timeout": "0.1"}
        answer = await client.post(RUN, json=SMALL, headers=headers)
        assert answer.status_code == 504
        assert (await made(house, answer)).status == "expired"


async def test_a_time_to_start_is_kept_though_the_row_was_just_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    expire = PredictionService.expire

    async def overtaken_once(service: PredictionService, prediction: Prediction) -> Prediction:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Conflict("the row has moved on")
        return await expire(service, prediction)

    monkeypatch.setattr(PredictionService, "expire", overtaken_once)
    await assert_expires_in_time(tmp_path)
    assert tries == 2


async def test_a_time_to_start_is_kept_though_the_wait_for_it_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = PredictionService.wait

    async def coarse(service: PredictionService, id_: str, timeout_s: float) -> Prediction:
        return await wait(service, id_, timeout_s * 0.9)

    monkeypatch.setattr(PredictionService, "wait", coarse)
    await assert_expires_in_time(tmp_path)


@pytest.mark.parametrize("name", ["image_url", "image_urls", "mask_url", "loras"])
async def test_what_an_app_does_not_take_is_refused_not_dropped(
    client: httpx.AsyncClient, name: str
) -> None:
    answer = await client.post(RUN, json={**SMALL, name: [PHOTO]})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", name]
