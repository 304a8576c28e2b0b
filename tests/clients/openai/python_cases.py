"""Cases for the official Python package `openai`, unmodified."""

import asyncio
import base64
import io
import json
import os
import sys
import traceback
from pathlib import Path

import httpx
from openai import (
    APIError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
)
from PIL import Image

SERVER, KEY = os.environ["SERVER"], os.environ["KEY"]
PHOTO = Path(os.environ["PHOTO"])
MASK = PHOTO.with_name("mask.png")
BEARER = {"Authorization": f"Bearer {KEY}"}
client = OpenAI(api_key=KEY, base_url=f"{SERVER}/v1")


def picture(text: str | None) -> Image.Image:
    assert text
    return Image.open(io.BytesIO(base64.b64decode(text)))


def record(request_id: str | None) -> dict[str, object]:
    """The same prediction as another dialect shows it."""
    answer = httpx.get(f"{SERVER}/v1/predictions/{request_id}", headers=BEARER, timeout=30)
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def count() -> int:
    body = {"page_size": 1}
    answer = httpx.post(f"{SERVER}/api/v3/predictions", json=body, headers=BEARER, timeout=30)
    return int(answer.json()["data"]["total"])


def a_picture_is_made() -> None:
    done = client.images.generate(
        model="flux-dev", prompt="a fox", size="512x512", quality="high", extra_body={"seed": 3}
    )
    assert done.data
    assert done.size == "512x512"
    assert picture(done.data[0].b64_json).size == (512, 512)
    assert record(done._request_id)["status"] == "succeeded"


def several_pictures_come_as_links() -> None:
    done = client.images.generate(
        model="dall-e-3",
        prompt="a fox",
        n=5,
        size="256x256",
        response_format="url",
        output_format="webp",
    )
    assert done.data
    assert len({item.url for item in done.data}) == 5
    answer = httpx.get(str(done.data[4].url), timeout=30)
    assert Image.open(io.BytesIO(answer.content)).format == "WEBP"


def a_file_is_edited() -> None:
    with PHOTO.open("rb") as file:
        done = client.images.edit(
            model="flux-kontext-dev", image=file, prompt="at night", extra_body={"guidance": 2.5}
        )
    assert done.data
    assert picture(done.data[0].b64_json).size == (320, 256)
    said = record(done._request_id)["input"]
    assert said == {"prompt": "at night", "guidance": "2.5"}


def several_files_are_edited_together() -> None:
    done = client.images.edit(
        model="flux-kontext-dev",
        image=[PHOTO.read_bytes(), ("second", PHOTO.read_bytes(), "application/octet-stream")],
        prompt="both",
        size="1024x1024",
        n=2,
    )
    assert done.data
    assert len(done.data) == 2


def a_mask_says_where() -> None:
    with PHOTO.open("rb") as file, MASK.open("rb") as mask:
        done = client.images.edit(model="simulator", image=file, mask=mask, prompt="a hat")
    assert done.data
    assert picture(done.data[0].b64_json).size == (320, 256)


def partial_pictures_are_streamed() -> None:
    events = client.images.generate(
        model="flux-dev",
        prompt="a fox [[steps=28]]",
        size="512x256",
        stream=True,
        partial_images=2,
    )
    seen = list(events)
    kinds = [event.type for event in seen]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in seen[:2]] == [0, 1]  # type: ignore[union-attr]
    assert picture(seen[-1].b64_json).size == (512, 256)


def an_edit_is_streamed() -> None:
    with PHOTO.open("rb") as file:
        events = client.images.edit(
            model="flux-kontext-dev", image=file, prompt="x", stream=True, partial_images=0
        )
        assert [event.type for event in events] == ["image_edit.completed"]


def an_error_in_a_stream_is_raised() -> None:
    events = client.images.generate(prompt="[[outcome=fail error='out of foxes']]", stream=True)
    try:
        list(events)
    except APIError as error:
        assert error.message == "out of foxes"  # noqa: PT017
        return
    raise AssertionError("no error was raised")


def errors_have_their_classes() -> None:
    calls = [
        (AuthenticationError, "invalid_api_key", {"prompt": "x"}),
        (NotFoundError, "model_not_found", {"prompt": "x", "model": "nothing"}),
        (BadRequestError, "invalid_value", {"prompt": "x", "size": "big"}),
        (BadRequestError, "moderation_blocked", {"prompt": "[[outcome=refuse_output]]"}),
        (InternalServerError, "engine_failed", {"prompt": "[[outcome=fail]]"}),
    ]
    before = count()
    for kind, code, words in calls:
        asker = client if kind is not AuthenticationError else client.with_options(api_key="no")
        try:
            asker.images.generate(**words)  # type: ignore[call-overload]
        except kind as error:
            assert error.code == code, error  # noqa: PT017
            assert error.request_id, code  # noqa: PT017
        else:
            raise AssertionError(f"{kind} was not raised")
    assert count() == before + 2  # a failed run is not repeated


def a_short_patience_makes_no_second_picture() -> None:
    before = count()
    hasty = client.with_options(timeout=1.0, max_retries=6)
    done = hasty.images.generate(model="flux-dev", prompt="a slow fox [[seconds=3]]")
    assert done.data
    assert count() == before + 1


def models_are_listed_and_told() -> None:
    ids = [model.id for model in client.models.list()]
    assert "flux-dev" in ids
    assert client.models.retrieve("flux-dev").owned_by == "black-forest-labs"
    own = client.with_options(base_url=f"{SERVER}/openai/v1")
    assert "flux-dev" in [model.id for model in own.models.list()]
    assert own.models.retrieve("black-forest-labs/flux-dev").object == "model"


def the_async_client_works_alike() -> None:
    photo = PHOTO.read_bytes()

    async def ask() -> None:
        async with AsyncOpenAI(api_key=KEY, base_url=f"{SERVER}/v1") as asker:
            one = asker.images.generate(model="flux-schnell", prompt="a fox", size="256x256")
            two = asker.images.edit(model="flux-kontext-dev", image=photo, prompt="at night")
            for done in await asyncio.gather(one, two):
                assert done.data
                assert picture(done.data[0].b64_json).format == "PNG"
            events = await asker.images.generate(
                prompt="a fox", model="flux-dev", stream=True, size="256x256"
            )
            assert [event.type async for event in events] == ["image_generation.completed"]

    asyncio.run(ask())


CASES = [
    a_picture_is_made,
    several_pictures_come_as_links,
    a_file_is_edited,
    several_files_are_edited_together,
    a_mask_says_where,
    partial_pictures_are_streamed,
    an_edit_is_streamed,
    an_error_in_a_stream_is_raised,
    errors_have_their_classes,
    a_short_patience_makes_no_second_picture,
    models_are_listed_and_told,
    the_async_client_works_alike,
]

for case in CASES:
    try:
        case()
        error = None
    except Exception:
        error = traceback.format_exc()
    sys.stdout.write(json.dumps({"case": case.__name__, "error": error}) + "\n")
