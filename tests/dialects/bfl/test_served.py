"""The BFL dialect over HTTP: keys, pictures, webhooks, repeats, other dialects' tasks."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from fluxserve.app import House
from fluxserve.asgi import create_app
from fluxserve.core.ids import parse_id, to_base32, to_uuid
from tests.dialects.served import client_of, format_of, house_on, png, size_of


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def ready(client: httpx.AsyncClient, answer: httpx.Response) -> dict[str, object]:
    """The final poll of a task that was just submitted."""
    assert answer.status_code == 200, answer.text
    final = await client.get(answer.json()["polling_url"] + "&wait=10")
    assert final.json()["status"] == "Ready", final.text
    body: dict[str, object] = final.json()
    return body


async def test_answers_are_compact_so_that_text_patterns_find_their_members(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/v1/flux-dev", json={"prompt": "x"}, headers={"Accept": "image/*"})
    assert '"polling_url":"http://flux.test/v1/get_result?id=' in answer.text
    final = await client.get(answer.json()["polling_url"] + "&wait=10")
    for member in ('"status":"', '"sample":"', '"id":"'):
        assert final.text.count(member) == 1


@pytest.mark.parametrize("mode", ["plain", "uri", "url safe", "lines"])
async def test_four_pictures_in_every_spelling_shape_the_result(
    mode: str, client: httpx.AsyncClient
) -> None:
    data = png(512, 256)
    text = {
        "plain": b64(data),
        "uri": f"data:image/png;base64,{b64(data)}",
        "url safe": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "lines": base64.encodebytes(data).decode(),
    }[mode]
    names = ("input_image", "input_image_2", "input_image_3", "input_image_4")
    body = {"prompt": "together", "output_format": "webp", **dict.fromkeys(names, text)}
    answer = await client.post("/v1/flux-kontext-pro", json=body)
    assert answer.json()["input_mp"] == pytest.approx(0.52)
    final = await ready(client, answer)
    result = final["result"]
    assert isinstance(result, dict)
    picture = (await client.get(result["sample"])).content
    assert format_of(picture) == "WEBP"
    width, height = size_of(picture)
    assert width / height == pytest.approx(2, rel=0.05)


async def test_the_picture_comes_in_the_answer_on_demand(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/flux-dev", json={"prompt": "x", "width": 256, "height": 256})
    await ready(client, answer)
    final = await client.get(answer.json()["polling_url"] + "&include=base64")
    data = base64.b64decode(final.json()["result"]["sample_base64"])
    assert (format_of(data), size_of(data)) == ("JPEG", (256, 256))


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("flux-kontext-pro", {"prompt": "x", "input_image": "no picture!"}, "input_image"),
        ("flux-kontext-pro", {"prompt": "x", "input_image_2": b64(b"hello")}, "input_image_2"),
        ("flux-kontext-pro", {"prompt": "x", "aspect_ratio": "9:1"}, "aspect_ratio"),
        ("flux-kontext-pro", {"prompt": "x", "aspect_ratio": "wide"}, "aspect_ratio"),
        ("flux-kontext-pro", {"prompt": ""}, "prompt"),
        ("flux-kontext-pro", {"prompt": "x", "webhook_url": "ftp://a/b"}, "webhook_url"),
        ("flux-kontext-pro", {"prompt": "x", "webhook_url": "http://[::1"}, "webhook_url"),
        ("flux-pro-1.0-fill", {"image": b64(png(300, 300))}, "mask"),
        ("flux-pro-1.0-fill", {"image": b64(png(100, 300))}, "image"),
        (
            "flux-pro-1.0-fill",
            {"image": b64(png(300, 300)), "mask": b64(png(300, 200))},
            "mask",
        ),
        ("flux-pro-1.0-expand", {"image": b64(png(300, 300))}, "top"),
    ],
)
async def test_what_is_wrong_is_a_422_that_names_its_field(
    name: str, body: dict[str, str], field: str, client: httpx.AsyncClient
) -> None:
    answer = await client.post(f"/v1/{name}", json=body)
    assert answer.status_code == 422, answer.text
    assert [item["loc"] for item in answer.json()["detail"]] == [["body", field]]
    assert answer.json()["message"].startswith(f"{field}: ")


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"", b"\xff", b"NaN", b'{"seed":1e999}'])
async def test_a_body_that_is_no_object_is_a_422(body: bytes, client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/flux-dev", content=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"


async def test_a_mask_may_be_the_alpha_channel(client: httpx.AsyncClient) -> None:
    clear = b64(png(300, 300, mode="RGBA", colour=(1, 2, 3, 0)))
    answer = await client.post("/v1/flux-pro-1.0-fill", json={"image": clear})
    final = await ready(client, answer)
    assert isinstance(final["result"], dict)


async def test_expand_answers_with_the_grown_picture(client: httpx.AsyncClient) -> None:
    body = {"input_image": b64(png(320, 320)), "left": 160, "right": 160}
    final = await ready(client, await client.post("/v1/flux-pro-1.0-expand", json=body))
    assert isinstance(final["result"], dict)
    assert (final["result"]["width"], final["result"]["height"]) == (640, 320)


@pytest.fixture
async def keys(house: House) -> tuple[str, str]:
    """Two accounts; from now on the server wants a key."""
    return (await house.keyring.create(name="a"))[1], (await house.keyring.create(name="b"))[1]


@pytest.mark.parametrize(
    "header",
    [
        {"x-key": "KEY"},
        {"X-Key": "KEY"},
        {"Authorization": "Bearer KEY"},
        {"Authorization": "KEY"},
        {"X-API-Key": "KEY"},
        {"x-key": "KEY", "Authorization": "Bearer wrong"},
    ],
)
async def test_a_key_is_taken_in_every_form(
    header: dict[str, str], keys: tuple[str, str], client: httpx.AsyncClient
) -> None:
    headers = {name: value.replace("KEY", keys[0]) for name, value in header.items()}
    answer = await client.post("/v1/flux-dev", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 200


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({}, "Not authenticated"),
        ({"x-key": "wrong"}, "Not authenticated - Invalid Authentication"),
    ],
)
async def test_a_missing_and_a_wrong_key_are_403_or_401_at_a_reseller(
    headers: dict[str, str], text: str, client: httpx.AsyncClient
) -> None:
    answer = await client.post("/v1/flux-dev", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 403
    assert answer.json() == {"detail": text, "message": text, "error": "invalid_api_key"}
    answer = await client.post("/flux/v1/flux-dev", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"] == {"message": "Invalid signature", "type": "401"}
    assert (await client.get("/v1/credits", headers=headers)).status_code == 403


async def test_polling_needs_no_key_but_another_key_sees_nothing(
    keys: tuple[str, str], client: httpx.AsyncClient
) -> None:
    mine, other = ({"x-key": key} for key in keys)
    answer = await client.post("/v1/flux-dev", json={"prompt": "x"}, headers=mine)
    url = answer.json()["polling_url"]
    final = await client.get(f"{url}&wait=10")
    assert final.json()["status"] == "Ready"
    assert (await client.get(final.json()["result"]["sample"])).status_code == 200
    assert (await client.get(url, headers=mine)).status_code == 200
    assert (await client.get(url, headers={"x-key": "stale"})).status_code == 200
    assert (await client.get(url, headers=other)).status_code == 404
    id_ = answer.json()["id"]
    assert (await client.post(f"/v1/cancel?id={id_}", headers=other)).status_code == 404
    assert (await client.get("/v1/tasks", headers=other)).json() == {"tasks": [], "next": None}
    assert len((await client.get("/v1/tasks", headers=mine)).json()["tasks"]) == 1


async def test_a_repeated_idempotency_key_answers_with_the_first_task(
    client: httpx.AsyncClient,
) -> None:
    header = {"Idempotency-Key": "once"}
    first = await client.post("/v1/flux-dev", json={"prompt": "x"}, headers=header)
    again = await client.post("/v1/flux-dev", json={"prompt": "x"}, headers=header)
    assert first.json()["id"] == again.json()["id"]
    other = await client.post("/v1/flux-dev", json={"prompt": "y"}, headers=header)
    assert other.status_code == 409


async def test_a_task_of_another_dialect_is_read_in_any_alphabet(house: House) -> None:
    async with client_of(house) as client:
        body = {"model": "flux-dev", "prompt": "x", "num_outputs": 2}
        made = (await client.post("/fluxserve/v1/predictions", json=body)).json()
        id_ = parse_id(made["id"])
        assert id_
        for spelling in (id_, to_uuid(id_), to_base32(id_), to_uuid(id_).upper()):
            final = await client.get("/v1/get_result", params={"id": spelling, "wait": "10"})
            assert final.json()["id"] == to_uuid(id_)
            assert final.json()["status"] == "Ready"
            assert len(final.json()["result"]["images"]) == 2


async def test_links_follow_a_trusted_proxy_and_never_a_stranger(tmp_path: Path) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "images.example.org"}
    async with house_on(tmp_path) as house:
        near = httpx.ASGITransport(create_app(house), client=("127.0.0.1", 5))
        far = httpx.ASGITransport(create_app(house), client=("203.0.113.9", 5))
        for transport, base in ((near, "https://images.example.org"), (far, "http://flux.test")):
            async with httpx.AsyncClient(transport=transport, base_url="http://flux.test") as one:
                answer = await one.post("/v1/flux-dev", json={"prompt": "x"}, headers=forwarded)
                assert answer.json()["polling_url"].startswith(f"{base}/v1/get_result?id=")


async def test_expired_files_make_a_task_unknown(house: House, client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/flux-dev", json={"prompt": "x"})
    await ready(client, answer)
    await house.store.strip(datetime.now(UTC) + timedelta(hours=1))
    gone = await client.get(answer.json()["polling_url"])
    assert (gone.status_code, gone.json()["status"]) == (404, "Task not found")


async def test_a_poll_waits_as_long_as_it_is_told(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/flux-dev", json={"prompt": "[[outcome=hold]]"})
    url = answer.json()["polling_url"]
    early = await client.get(f"{url}&wait=0.01")
    assert early.json()["status"] == "Pending"
    assert (await client.get(f"{url}&wait=soon")).status_code == 422
    assert (await client.get(f"{url}&wait=nan")).status_code == 422
    assert (await client.get("/v1/tasks?limit=0")).status_code == 422


async def test_a_limited_key_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with house_on(tmp_path, {"limits": {"rate_per_minute": 1}}) as house:
        key = (await house.keyring.create(name="a"))[1]
        async with client_of(house, key) as client:
            answers = [await client.post("/v1/flux-dev", json={"prompt": "x"}) for _ in range(9)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert int(refused[0].headers["Retry-After"]) >= 1
    assert refused[0].json()["error"] == "rate_limit_exceeded"
    assert isinstance(refused[0].json()["detail"], str)


async def test_a_body_over_the_limit_is_413(tmp_path: Path) -> None:
    limits = {"limits": {"body_max_bytes": 2048}}
    async with house_on(tmp_path, limits) as house, client_of(house) as client:
        content = json.dumps({"prompt": "x" * 4096})
        answer = await client.post("/v1/flux-dev", content=content)
    assert answer.status_code == 413
    assert isinstance(answer.json()["detail"], str)


async def test_a_sample_of_ours_is_an_input_without_the_network(client: httpx.AsyncClient) -> None:
    first = await ready(client, await client.post("/flux/v1/flux-dev", json={"prompt": "x"}))
    assert isinstance(first["result"], dict)
    body = {"prompt": "edit", "input_image": first["result"]["sample"]}
    await ready(client, await client.post("/v1/flux-kontext-pro", json=body))


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": None}])
async def test_flux_dev_makes_pictures_without_a_prompt(
    body: dict[str, str | None], client: httpx.AsyncClient
) -> None:
    final = await ready(client, await client.post("/v1/flux-dev", json=body))
    assert isinstance(final["result"], dict)
    assert final["result"]["prompt"] == ""


async def test_the_cost_is_the_tables_price_in_credits(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/flux-dev", json={})).json()["cost"] is None
    price = {"model": "black-forest-labs/flux-dev", "per_image": 0.025}
    assert (await client.post("/fluxserve/v1/prices", json=price)).status_code == 201
    assert (await client.post("/v1/flux-dev", json={})).json()["cost"] == 2.5
    other = await client.post("/v1/flux-kontext-pro", json={"prompt": "a fox"})
    assert other.json()["cost"] is None
