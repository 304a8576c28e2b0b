"""The WaveSpeed dialect over HTTP: keys, pictures, sync mode, webhooks, lists, uploads."""

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from fluxserve.app import House
from fluxserve.core.ids import parse_id, to_base32, to_uuid
from tests.dialects.served import client_of, format_of, house_on, png, size_of

SUBMIT = "/api/v3/wavespeed-ai/flux-kontext-dev"


async def done(client: httpx.AsyncClient, path: str, **body: object) -> dict[str, object]:
    """The object of a task in sync mode."""
    answer = await client.post(path, json={"prompt": "x", "enable_sync_mode": True, **body})
    assert answer.status_code == 200, answer.text
    data: dict[str, object] = answer.json()["data"]
    assert data["status"] == "completed", answer.text
    return data


async def test_a_task_can_be_read_before_its_answer_leaves(client: httpx.AsyncClient) -> None:
    answer = await client.post(SUBMIT, json={"prompt": "x"})
    data = answer.json()["data"]
    result = await client.get(data["urls"]["get"])
    assert result.status_code == 200
    assert all(isinstance(url, str) for url in data["urls"].values())


async def test_the_picture_has_the_size_of_its_input_unless_one_was_said(
    client: httpx.AsyncClient,
) -> None:
    picture = base64.b64encode(png(512, 256)).decode()
    data = await done(client, SUBMIT, image=picture)
    assert isinstance(data["outputs"], list)
    width, height = size_of((await client.get(data["outputs"][0])).content)
    assert width / height == pytest.approx(2, rel=0.05)
    data = await done(client, SUBMIT, image=f"data:image/png;base64,{picture}", size="300*260")
    assert isinstance(data["outputs"], list)
    assert size_of((await client.get(data["outputs"][0])).content) == (304, 256)
    assert data["input"] == {"prompt": "x", "enable_sync_mode": True, "size": "300*260"}


async def test_several_pictures_go_in_together(client: httpx.AsyncClient) -> None:
    pictures = [base64.b64encode(png(256, 256, colour=(n, n, n))).decode() for n in range(3)]
    await done(client, f"{SUBMIT}/multi", images=pictures)
    await done(client, "/api/v3/wavespeed-ai/flux-kontext-pro/multi", images=pictures)
    await done(client, "/api/v3/fluxserve/simulator", images=pictures)


async def test_outputs_as_text_are_data_uris_in_result_too(client: httpx.AsyncClient) -> None:
    data = await done(client, SUBMIT, enable_base64_output=True, output_format="webp")
    assert isinstance(data["outputs"], list)
    head, _, text = data["outputs"][0].partition(",")
    assert head == "data:image/webp;base64"
    assert format_of(base64.b64decode(text)) == "WEBP"
    again = await client.get(f"/api/v3/predictions/{data['id']}/result")
    assert again.json()["data"]["outputs"] == data["outputs"]


async def test_picture_i_is_the_picture_of_seed_plus_i(client: httpx.AsyncClient) -> None:
    several = await done(client, SUBMIT, num_images=2, seed=41, size="256*256")
    one = await done(client, SUBMIT, num_images=1, seed=42, size="256*256")
    assert isinstance(several["outputs"], list)
    assert isinstance(one["outputs"], list)
    assert (await client.get(several["outputs"][1])).content == (
        await client.get(one["outputs"][0])
    ).content


async def test_a_wait_that_is_too_short_tells_of_the_task(tmp_path: Path) -> None:
    flags = {"wavespeed": {"sync_timeout_s": 0.05}, "simulator": {"outcome": "hold"}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        answer = await client.post(SUBMIT, json={"prompt": "x", "enable_sync_mode": True})
        data = answer.json()["data"]
        assert answer.status_code == 200
        assert (data["status"], data["code"]) == ("processing", 5004)
        assert data["error"].startswith("Sync mode timed out after 0.05 seconds")
        assert (await client.get(data["urls"]["get"])).json()["data"]["status"] == "created"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (SUBMIT, {}, "prompt is required"),
        (SUBMIT, {"prompt": " "}, "prompt is required"),
        (SUBMIT, {"prompt": 3}, "prompt: Invalid type. Expected: string, given: integer"),
        (
            SUBMIT,
            {"prompt": "x", "size": "100*100"},
            "size must be between 256 and 1536 per dimension",
        ),
        (SUBMIT, {"prompt": "x", "size": "big"}, "size must be width*height"),
        (SUBMIT, {"prompt": "x", "num_images": 5}, "num_images must be less than or equal to 4"),
        (SUBMIT, {"prompt": "x", "num_images": 0}, "num_images must be greater"),
        (SUBMIT, {"prompt": "x", "seed": -2}, "seed must be greater than or equal to -1"),
        (SUBMIT, {"prompt": "x", "num_inference_steps": 51}, "num_inference_steps must be less"),
        (SUBMIT, {"prompt": "x", "guidance_scale": 0.5}, "guidance_scale must be greater"),
        (SUBMIT, {"prompt": "x", "output_format": "gif"}, "output_format must be one of"),
        (SUBMIT, {"prompt": "x", "image": "no picture!"}, "image: an http(s) URL, a data URI"),
        (SUBMIT, {"prompt": "x", "image": 3}, "image: a picture is a text"),
        (SUBMIT, {"prompt": "x", "images": "a"}, "images: a list of pictures"),
        (SUBMIT, {"prompt": "x", "images": ["a", 3]}, "images.1: a picture is a text"),
        (SUBMIT, {"prompt": "x", "mask_image": "aGk="}, "mask_image: this model does not take it"),
        (SUBMIT, {"prompt": "x", "loras": [{"scale": 1}]}, "loras.0.path is required"),
        (SUBMIT, {"prompt": "x", "loras": [{"path": "a", "scale": 5}]}, "loras.0.scale must be"),
        (SUBMIT, {"prompt": "x", "loras": ["a"]}, "loras.0: Invalid type"),
        (
            "/api/v3/wavespeed-ai/flux-dev-lora",
            {"prompt": "x", "guidance_scale": 11},
            "guidance_scale must be less than or equal to 10",
        ),
        (SUBMIT, {"prompt": "x", "enable_sync_mode": "maybe"}, "enable_sync_mode: Invalid type"),
        (SUBMIT, {"prompt": "x", "webhook_url": "ftp://a"}, "webhook_url must be an http"),
        (SUBMIT, {"prompt": "x", "webhook_url": 3}, "webhook_url must be a URL"),
        (f"{SUBMIT}?webhook=nowhere", {"prompt": "x"}, "webhook must be an http"),
        (f"{SUBMIT}/multi", {"prompt": "x"}, "images is required"),
        (
            "/api/v3/wavespeed-ai/flux-kontext-pro",
            {"prompt": "x"},
            "image is required",
        ),
        (
            "/api/v3/wavespeed-ai/flux-kontext-pro/text-to-image",
            {"prompt": "x", "safety_tolerance": "6"},
            "safety_tolerance must be one of",
        ),
        (
            "/api/v3/wavespeed-ai/flux-kontext-pro/text-to-image",
            {"prompt": "x", "loras": [{"path": "a"}]},
            "loras: this model does not take it",
        ),
        (
            "/api/v3/wavespeed-ai/flux-schnell",
            {"prompt": "x", "num_inference_steps": 9},
            "num_inference_steps must be less than or equal to 8",
        ),
        (
            "/api/v3/wavespeed-ai/flux-dev",
            {"prompt": "x", "aspect_ratio": "9:1"},
            "aspect_ratio: a ratio",
        ),
    ],
)
async def test_what_is_wrong_is_a_400_that_names_its_field(
    path: str, body: dict[str, object], message: str, client: httpx.AsyncClient
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    said = answer.json()
    assert said["code"] == 400
    assert said["message"].startswith(message), said
    assert said["error"] == said["message"]
    assert said["error_code"] in ("invalid_parameter", "missing_parameter")


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"", b"\xff", b"NaN"])
async def test_a_body_that_is_no_object_is_a_400(body: bytes, client: httpx.AsyncClient) -> None:
    for path in (SUBMIT, "/api/v3/predictions", "/api/v3/media/uploads", "/api/v3/model/price"):
        answer = await client.post(path, content=body)
        assert (answer.status_code, answer.json()["code"]) == (400, 400)


@pytest.mark.parametrize(
    "path", ["/api/v3/wavespeed-ai/flux-9000", "/api/v3/fal-ai/flux/dev", "/api/v3/a/b/c/d"]
)
async def test_an_unknown_model_is_a_404_that_names_it(
    path: str, client: httpx.AsyncClient
) -> None:
    answer = await client.post(path, json={"prompt": "x"})
    assert answer.status_code == 404
    assert path.removeprefix("/api/v3/") in answer.json()["message"]


@pytest.mark.parametrize("path", ["/api/v3/nothing", "/api/v3/wavespeed-ai", "/api/v2/x/"])
async def test_an_unknown_path_is_answered_in_the_envelope(
    path: str, client: httpx.AsyncClient
) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, 404)
    assert (await client.get(SUBMIT)).status_code == 405


async def test_every_call_but_the_put_wants_the_right_key(
    house: House, client: httpx.AsyncClient
) -> None:
    mine = {"Authorization": f"Bearer {(await house.keyring.create(name='a'))[1]}"}
    other = {"Authorization": f"Bearer {(await house.keyring.create(name='b'))[1]}"}
    made = await client.post(SUBMIT, json={"prompt": "x", "enable_sync_mode": True}, headers=mine)
    url = made.json()["data"]["urls"]["get"]
    for headers, status in ((mine, 200), (other, 404), ({}, 401), ({"Authorization": "x"}, 401)):
        assert (await client.get(url, headers=headers)).status_code == status
    ids = {"ids": [made.json()["data"]["id"]]}
    gone = await client.post("/api/v3/predictions/delete", json=ids, headers=other)
    assert gone.json()["data"] == {"deleted_count": 0}
    page = await client.post("/api/v3/predictions", json={}, headers=other)
    assert page.json()["data"]["total"] == 0
    for path in ("balance", "models", "webhook/secret", "account/balance"):
        assert (await client.get(f"/api/v3/{path}")).json()["code"] == 401
    assert (await client.get(made.json()["data"]["outputs"][0])).status_code == 200


async def test_a_webhook_of_an_older_client_keeps_its_whole_query(
    house: House, client: httpx.AsyncClient
) -> None:
    """The value is not encoded, so that part of it arrives as members of ours."""
    spellings = {
        "webhook=http://hooks.example.org/h?a=1&b=2": "http://hooks.example.org/h?a=1&b=2",
        "webhook=http://hooks.example.org/a+b?c=d+e": "http://hooks.example.org/a+b?c=d+e",
        "webhook=https%3A%2F%2Fhooks.example.org%2Fh%3Fa%3D1%26b%3D2&wait=1": (
            "https://hooks.example.org/h?a=1&b=2"
        ),
    }
    for query, url in spellings.items():
        answer = await client.post(f"{SUBMIT}?{query}", json={"prompt": "x", "webhook_url": "y"})
        prediction = await house.predictions.get(answer.json()["data"]["id"])
        assert prediction.origin.webhook
        assert prediction.origin.webhook.url == url
    answer = await client.post(SUBMIT, json={"prompt": "x", "webhook_url": "https://a.example/h"})
    prediction = await house.predictions.get(answer.json()["data"]["id"])
    assert prediction.origin.webhook
    assert prediction.origin.webhook.url == "https://a.example/h"


async def test_a_repeated_idempotency_key_answers_with_the_first_task(
    client: httpx.AsyncClient,
) -> None:
    header = {"Idempotency-Key": "once"}
    first = await client.post(SUBMIT, json={"prompt": "x"}, headers=header)
    again = await client.post(SUBMIT, json={"prompt": "x"}, headers=header)
    assert first.json()["data"]["id"] == again.json()["data"]["id"]
    other = await client.post(SUBMIT, json={"prompt": "y"}, headers=header)
    assert (other.status_code, other.json()["code"]) == (409, 409)


async def test_tasks_of_every_dialect_are_listed_page_by_page(client: httpx.AsyncClient) -> None:
    for number in range(5):
        await done(client, SUBMIT, seed=number)
    made = (await client.post("/v1/flux-dev", json={"prompt": "x", "seed": 9})).json()
    await client.get(made["polling_url"] + "&wait=10")
    seen = []
    for page in (1, 2, 3, 4):
        answer = await client.post("/api/v3/predictions", json={"page": page, "page_size": 2})
        data = answer.json()["data"]
        assert (data["page"], data["total"]) == (page, 6)
        seen += [item["id"] for item in data["items"]]
    assert len(seen) == len(set(seen)) == 6
    assert seen[0] == parse_id(made["id"])
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for narrow, total in (
        ({"status": "completed"}, 6),
        ({"status": "failed"}, 0),
        ({"model": "flux-dev"}, 1),
        ({"created_after": soon}, 0),
        ({"created_before": soon.replace("+00:00", "")}, 6),
    ):
        answer = await client.post("/api/v3/predictions", json=narrow)
        assert answer.json()["data"]["total"] == total, narrow
    for wrong in ({"status": "x"}, {"created_after": "x"}, {"page": 0}, {"page_size": 101}):
        assert (await client.post("/api/v3/predictions", json=wrong)).status_code == 400


async def test_a_task_is_the_same_in_every_dialect(client: httpx.AsyncClient) -> None:
    data = await done(client, SUBMIT, seed=5)
    id_ = str(data["id"])
    for spelling in (id_, to_uuid(id_), to_base32(id_)):
        read = await client.get(f"/api/v3/predictions/{spelling}/result")
        assert read.json()["data"]["id"] == id_
    bfl = (await client.get(f"/v1/get_result?id={to_uuid(id_)}")).json()
    assert (bfl["status"], bfl["result"]["seed"]) == ("Ready", 5)
    replicate = (await client.get(f"/v1/predictions/{to_base32(id_)}")).json()
    assert (replicate["id"], replicate["status"]) == (to_base32(id_), "succeeded")
    held = (await client.post("/v1/flux-dev", json={"prompt": "[[outcome=hold]]"})).json()
    stopped = await client.post(f"/api/v3/predictions/{held['id']}/cancel")
    assert stopped.json()["data"]["status"] == "failed"
    assert stopped.json()["data"]["model"] == "flux-dev"
    assert (await client.get(held["polling_url"])).json()["status"] == "Error"


async def test_every_model_of_the_list_can_be_submitted_by_its_schema(
    client: httpx.AsyncClient,
) -> None:
    models = (await client.get("/api/v3/models")).json()["data"]
    assert len(models) > 20
    for model in models:
        (schema,) = model["api_schema"]["api_schemas"]
        request = schema["request_schema"]
        assert request == model["api_schema"]["components"]["schemas"]["Request"]
        assert set(request["x-order-properties"]) == set(request["properties"])
        assert set(request["required"]) <= set(request["properties"])
        assert model["type"] in ("text-to-image", "image-to-image")
        assert schema["api_path"] == f"/api/v3/{model['model_id']}"
        answer = await client.post(schema["api_path"], json={"prompt": "[[outcome=hold]]"})
        assert answer.status_code in (200, 400), answer.text


async def test_an_upload_over_the_limit_is_413_however_it_is_sent(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        boundary = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield boundary
        for _ in range(40):
            yield bytes(4096)
        yield b"\r\n--XX--\r\n"

    flags = {"limits": {"upload_max_bytes": 4096}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        path = "/api/v3/media/upload/binary"
        answer = await client.post(path, files={"file": ("a.png", bytes(100_000))})
        assert (answer.status_code, answer.json()["code"]) == (413, 413)
        kind = {"Content-Type": "multipart/form-data; boundary=XX"}
        answer = await client.post(path, content=chunks(), headers=kind)
        assert (answer.status_code, answer.json()["code"]) == (413, 413)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=XX", b"not a form"),
        ("application/json", b"{}"),
        ("", b""),
    ],
)
async def test_a_form_that_is_none_is_a_400(
    kind: str, body: bytes, client: httpx.AsyncClient
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = await client.post("/api/v3/media/upload/binary", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)


async def test_a_picture_that_cannot_be_fetched_fails_with_its_code(
    client: httpx.AsyncClient,
) -> None:
    body = {"prompt": "x", "image": "http://127.0.0.1:9/a.png", "enable_sync_mode": True}
    answer = await client.post(SUBMIT, content=json.dumps(body))
    if answer.status_code == 200:
        data = answer.json()["data"]
        assert (data["status"], data["code"]) == ("failed", 1402)
    else:
        assert (answer.status_code, answer.json()["error_code"]) == (400, "media_unreachable")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/v3/predictions/"), ("GET", "/api/v3/balance/"), ("GET", "/api/v2/models/")],
)
async def test_a_slash_too_many_leads_to_the_path_without_it(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    body: dict[str, int] | None = {} if method == "POST" else None
    answer = await client.request(method, f"{path}?x=1", json=body)
    assert (answer.status_code, answer.headers["location"]) == (307, f"{path[:-1]}?x=1")
    again = await client.request(method, answer.headers["location"], json=body)
    assert again.json()["code"] == 200
    task = (await client.post(SUBMIT + "/", json={"prompt": "x"})).json()["data"]
    result = await client.get(task["urls"]["get"] + "/", follow_redirects=True)
    assert result.json()["data"]["id"] == task["id"]


async def test_deleted_tasks_are_listed_as_none(client: httpx.AsyncClient) -> None:
    await done(client, SUBMIT)
    answer = await client.post("/api/v3/predictions", json={"status": "deleted"})
    assert answer.json()["data"] == {"page": 1, "total": 0, "items": []}


async def test_every_path_says_which_methods_it_takes(client: httpx.AsyncClient) -> None:
    for path, allowed in (
        (SUBMIT, "POST"),
        ("/api/v3/balance", "GET, HEAD"),
        ("/v1/flux-dev", "POST"),
        ("/flux/v1/get_result", "GET, HEAD"),
        ("/fal/queue/fal-ai/flux/dev", "POST"),
    ):
        answer = await client.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path


async def test_an_adapters_scale_may_be_null(house: House, client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "loras": [{"path": "a", "scale": None}]}
    answer = await client.post(SUBMIT, json=body)
    made = await house.predictions.get(answer.json()["data"]["id"])
    assert [lora.scale for lora in made.request.loras] == [1.0]
