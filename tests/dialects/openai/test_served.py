"""The OpenAI dialect over HTTP: forms, masks, streams, names of models, repeated calls."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from fluxserve.app import House
from fluxserve.core.prediction import Prediction
from tests.dialects.served import client_of, house_on, png, size_of

GENERATE = "/v1/images/generations"
EDIT = "/v1/images/edits"
SMALL = {"prompt": "a fox", "size": "256x256"}
Parts = list[tuple[str, tuple[str | None, bytes | str]]]


async def done(client: httpx.AsyncClient, path: str, **more: Any) -> httpx.Response:
    answer = await client.post(path, **more)
    assert answer.status_code == 200, answer.text
    return answer


async def made(house: House, answer: httpx.Response) -> Prediction:
    """The prediction behind an answer."""
    id_ = answer.headers["x-request-id"].replace("-", "")
    return await house.predictions.get(id_)


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
    return [json.loads(line[5:]) for line in lines]


def field(name: str, value: str) -> tuple[str, tuple[None, str]]:
    return name, (None, value)


async def test_all_pictures_of_a_form_go_in_in_their_order(
    house: House, client: httpx.AsyncClient
) -> None:
    pictures = [png(64, 64, colour=(shade, 0, 0)) for shade in (1, 2, 3, 4)]
    names = ("image", "image[]", "image[0]", "images")
    parts: Parts = [(name, ("a.bin", data)) for name, data in zip(names, pictures, strict=True)]
    parts += [field("prompt", "x"), field("model", "flux-kontext-dev"), field("n", "2")]
    answer = await done(client, EDIT, files=parts)
    assert len(answer.json()["data"]) == 2
    request = (await made(house, answer)).request
    blobs = [image.blob.key if image.blob else "" for image in request.images]
    assert [await house.blobs.get(key) for key in blobs] == pictures


@pytest.mark.parametrize("kind", ["clear", "white"])
async def test_what_a_mask_wants_changed_becomes_white(
    house: House, client: httpx.AsyncClient, kind: str
) -> None:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0) if kind == "clear" else (255, 255, 255, 255), (0, 0, 32, 64))
    out = io.BytesIO()
    mask.save(out, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    picture = "data:image/png;base64," + base64.b64encode(png(64, 64)).decode()
    parts: Parts = [("image", ("a", png(64, 64))), ("mask", ("m", out.getvalue()))]
    parts += [field("prompt", "a hat"), field("model", "simulator")]
    body = {"prompt": "a hat", "model": "simulator", "images": [{"image_url": picture}]}
    for answer in (
        await done(client, EDIT, files=parts),
        await done(client, EDIT, json={**body, "mask": {"image_url": uri}}),
    ):
        stored = (await made(house, answer)).request.mask
        assert stored is not None
        assert stored.blob is not None
        with Image.open(io.BytesIO(await house.blobs.get(stored.blob.key))) as image:
            assert (image.mode, image.getpixel((8, 8)), image.getpixel((56, 8))) == ("L", 255, 0)


async def test_a_mask_has_the_size_of_the_first_picture(client: httpx.AsyncClient) -> None:
    parts: Parts = [("image", ("a", png(64, 64))), ("mask", ("m", png(32, 64)))]
    parts += [field("prompt", "x"), field("model", "simulator")]
    answer = await client.post(EDIT, files=parts)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "mask"
    assert "64x64, not 32x64" in answer.json()["error"]["message"]


async def test_an_edit_has_the_size_of_its_picture_where_the_model_can(
    client: httpx.AsyncClient,
) -> None:
    for size, model, expected in [
        ((512, 384), "flux-kontext-dev", "512x384"),
        ((2048, 2048), "flux-kontext-dev", "1024x1024"),
        ((500, 300), "flux-dev", "496x304"),
    ]:
        picture = base64.b64encode(png(*size)).decode()
        body = {"prompt": "x", "model": model, "image": picture, "size": "auto"}
        answer = await done(client, EDIT, json=body)
        assert answer.json()["size"] == expected


async def test_extra_members_reach_the_model(house: House, client: httpx.AsyncClient) -> None:
    parts: Parts = [("image", ("a", png(64, 64)))]
    words = {"prompt": "x", "model": "simulator", "seed": "3", "guidance_scale": "2.5"}
    words |= {"num_inference_steps": "7", "strength": "0.5", "output_compression": "40"}
    words |= {"loras[0][path]": "fox", "loras[0][scale]": "0.5", "output_format": "jpeg"}
    parts += [field(name, value) for name, value in words.items()]
    request = (await made(house, await done(client, EDIT, files=parts))).request
    assert (request.seed, request.guidance, request.num_steps) == (3, 2.5, 7)
    assert (request.strength, request.output_quality) == (0.5, 40)
    assert [(lora.path, lora.scale) for lora in request.loras] == [("fox", 0.5)]


@pytest.mark.parametrize(
    ("model", "quality", "steps"),
    [
        ("flux-dev", "auto", 28),
        ("flux-dev", "low", 14),
        ("flux-dev", "hd", 42),
        ("flux-dev", "max", 49),
        ("flux-schnell", "max", 4),
    ],
)
async def test_quality_chooses_the_steps_of_models_that_take_many(
    house: House, client: httpx.AsyncClient, model: str, quality: str, steps: int
) -> None:
    body = {**SMALL, "model": model, "quality": quality}
    answer = await done(client, GENERATE, json=body)
    assert (await made(house, answer)).request.num_steps == steps
    assert answer.json()["quality"] == quality


async def test_a_stream_has_previews_and_then_the_picture(tmp_path: Path) -> None:
    flags = {"simulator": {"steps": 28, "seconds": 0.3}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        for count in range(4):
            body = {**SMALL, "stream": True, "partial_images": count, "model": "flux-dev"}
            answer = await done(client, GENERATE, json=body)
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = events_of(answer)
            assert [event.get("partial_image_index") for event in events] == [*range(count), None]
            assert events[-1]["type"] == "image_generation.completed"
            assert events[-1]["usage"]["total_tokens"] == 0
            pictures = [base64.b64decode(event["b64_json"]) for event in events]
            assert size_of(pictures[-1]) == (256, 256)
            for event, data in zip(events, pictures, strict=True):
                assert event["size"] == "{}x{}".format(*size_of(data))
        picture = base64.b64encode(png(64, 64)).decode()
        body = {"prompt": "x", "image": picture, "model": "simulator", "stream": "true"}
        events = events_of(await done(client, EDIT, json={**body, "partial_images": "1"}))
        kinds = [event["type"] for event in events]
        assert kinds == ["image_edit.partial_image", "image_edit.completed"]


async def test_where_no_model_is_named_one_that_can_do_it_is_taken(
    house: House, client: httpx.AsyncClient
) -> None:
    picture = base64.b64encode(png(64, 64)).decode()
    for path, body, model in [
        (GENERATE, SMALL, "black-forest-labs/flux-dev"),
        (EDIT, {"prompt": "x", "image": picture}, "black-forest-labs/flux-kontext-dev"),
        (
            EDIT,
            {"prompt": "x", "image": picture, "mask": picture},
            "black-forest-labs/flux-fill-pro",
        ),
    ]:
        answer = await done(client, path, json=body)
        assert (await made(house, answer)).request.model == model


async def test_a_setting_says_what_openais_own_names_mean(tmp_path: Path) -> None:
    async with (
        house_on(tmp_path, {"openai": {"default_model": "flux-schnell"}}) as house,
        client_of(house) as client,
    ):
        for name in ("dall-e-3", "gpt-image-1", "chatgpt-image-latest", None):
            answer = await done(client, GENERATE, json={**SMALL, "model": name})
            assert (await made(house, answer)).request.model == "black-forest-labs/flux-schnell"
        answer = await client.post(GENERATE, json={**SMALL, "model": "nothing"})
        assert answer.status_code == 404


async def test_a_call_that_takes_too_long_goes_on_and_is_found_by_its_repetition(
    tmp_path: Path,
) -> None:
    patience = {"x-stainless-read-timeout": "0.4", "x-stainless-retry-count": "0"}
    again = {"x-stainless-read-timeout": "30", "x-stainless-retry-count": "1"}
    body = {**SMALL, "prompt": "[[seconds=1]]", "n": 5, "model": "flux-dev"}
    async with house_on(tmp_path) as house, client_of(house) as client:
        late = await client.post(GENERATE, json=body, headers=patience)
        assert late.status_code == 504
        assert late.headers["x-should-retry"] == "true"
        assert late.json()["error"]["code"] == "timeout"
        answer = await done(client, GENERATE, json=body, headers=again)
        assert answer.headers["x-request-id"] == late.headers["x-request-id"]
        assert len(answer.json()["data"]) == 5
        other = await done(client, GENERATE, json={**body, "seed": 1}, headers=again)
        assert other.headers["x-request-id"] != late.headers["x-request-id"]


async def test_without_patience_of_its_own_a_caller_is_told_not_to_repeat(tmp_path: Path) -> None:
    flags = {"openai": {"wait_max_s": 0.1}, "simulator": {"outcome": "hold"}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        answer = await client.post(GENERATE, json=SMALL)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
        assert (await made(house, answer)).status == "queued"


async def test_an_idempotency_key_names_one_picture(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await done(client, GENERATE, json=SMALL, headers=headers)
    second = await done(client, GENERATE, json=SMALL, headers=headers)
    assert first.json()["data"] == second.json()["data"]
    answer = await client.post(GENERATE, json={**SMALL, "seed": 1}, headers=headers)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")


async def test_keys_open_what_they_open(tmp_path: Path) -> None:
    async with house_on(tmp_path) as house:
        _, narrow = await house.keyring.create(models=["black-forest-labs/flux-dev"])
        async with client_of(house) as nobody, client_of(house, narrow) as client:
            answer = await nobody.post(GENERATE, json=SMALL)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert (await nobody.get("/openai/v1/models")).status_code == 401
            answer = await client.post(GENERATE, json={**SMALL, "model": "flux-schnell"})
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
            listed = (await client.get("/openai/v1/models")).json()["data"]
            assert [model["id"] for model in listed] == ["flux-dev"]


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"prompt": "x", "n": "two"}, "n"),
        ({"prompt": "x", "stream": "maybe"}, "stream"),
        ({"prompt": "x", "loras": "[1]"}, "loras.0"),
        ({"prompt": "x", "loras[3][path]": "a"}, "loras"),
        ({"prompt": "  "}, "prompt"),
    ],
)
async def test_a_bad_part_of_a_form_is_named(
    client: httpx.AsyncClient, form: Mapping[str, str], param: str
) -> None:
    parts: Parts = [("image", ("a", png(64, 64))), *(field(*pair) for pair in form.items())]
    answer = await client.post(EDIT, files=parts)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_seventeen_pictures_are_too_many(client: httpx.AsyncClient) -> None:
    parts: Parts = [("image[]", ("a", png(64, 64))) for _ in range(17)]
    answer = await client.post(EDIT, files=[*parts, field("prompt", "x")])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "array_above_max_length"


@pytest.mark.parametrize("size", ["0x0", "0x512", "100000x100000"])
async def test_no_pixels_and_too_many_are_refused_as_a_size(
    client: httpx.AsyncClient, size: str
) -> None:
    answer = await client.post(GENERATE, json={"prompt": "a fox", "size": size})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "size"
    assert "Invalid value for 'size': must be" in error["message"]
