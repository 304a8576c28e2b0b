"""Predictions against a whole server: waits, lists, links, delivery, limits, removal."""

import asyncio
import base64
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.app import House
from fluxserve.asgi import create_app
from fluxserve.core.ids import parse_id
from tests.dialects.served import client_of, format_of, house_on

PRO = "/v1/models/black-forest-labs/flux-pro/predictions"
PY1 = {"User-Agent": "replicate-python/1.0.7"}
PY2 = {"User-Agent": "Replicate/Python 2.0.0-beta.4"}
JS = {"User-Agent": "replicate-javascript/1.4.0"}
WAIT = {"Prefer": "wait=20"}
SLOW = "slow [[seconds=60]]"


async def create(client: httpx.AsyncClient, prompt: str = "x", **headers: str) -> dict[str, Any]:
    answer = await client.post(PRO, json={"input": {"prompt": prompt}}, headers=headers)
    assert answer.status_code in (201, 202), answer.text
    found: dict[str, Any] = answer.json()
    return found


async def finished(client: httpx.AsyncClient, **headers: str) -> dict[str, Any]:
    return await create(client, **{**WAIT, **headers})


async def test_a_preference_in_a_header_line_of_its_own_is_read(client: httpx.AsyncClient) -> None:
    lines = [("Prefer", "respond-async"), ("Prefer", "wait=20")]
    answer = await client.post(PRO, json={"input": {"prompt": "x"}}, headers=lines)
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.json()["status"] == "succeeded"


async def test_sdks_over_plain_http_get_data_uris_and_others_links(
    client: httpx.AsyncClient,
) -> None:
    for agent in (PY1, JS, PY2):
        made = await finished(client, **agent)
        assert made["output"].startswith("data:image/webp;base64,"), agent
        data = base64.b64decode(made["output"].partition(",")[2])
        assert format_of(data) == "WEBP"
        shown = await client.get(made["urls"]["get"], headers=agent)
        assert shown.json()["output"] == made["output"]
    plain = await client.get(made["urls"]["get"])
    assert plain.json()["output"].startswith("http://flux.test/out/")
    listed = await client.get("/v1/predictions", headers=PY1)
    assert listed.json()["results"][0]["output"].startswith("http://flux.test/out/")


async def test_the_second_python_client_gets_links_for_what_it_did_not_wait_for(
    client: httpx.AsyncClient,
) -> None:
    """Its `use()` downloads links and would hand data URIs on as text."""
    made = await create(client, **PY2)
    while made["status"] not in ("succeeded", "failed"):
        await asyncio.sleep(0.01)
        made = (await client.get(made["urls"]["get"], headers=PY2)).json()
    assert made["output"].startswith("http://flux.test/out/")


async def test_https_always_gives_links(house: House) -> None:
    async with client_of(house, base="https://flux.test") as client:
        made = await finished(client, **PY1)
    assert made["output"].startswith("https://flux.test/out/")
    assert made["urls"]["get"].startswith("https://flux.test/v1/")


@pytest.mark.parametrize(("setting", "start"), [("url", "http://flux.test/"), ("data", "data:")])
async def test_the_delivery_is_a_setting(tmp_path: Path, setting: str, start: str) -> None:
    flags = {"replicate": {"output": setting}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        made = await finished(client, **PY1)
        assert made["output"].startswith(start)
        events = await client.get(made["urls"]["stream"])
        assert f"data: {start}" in events.text


async def test_links_stand_on_the_callers_origin_and_forwarded_ones_only_on_a_proxys(
    house: House,
) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    for address, origin in (("203.0.113.9", "http://a.example"), ("127.0.0.1", "https://evil")):
        transport = httpx.ASGITransport(create_app(house), client=(address, 4))
        async with httpx.AsyncClient(transport=transport, base_url="http://a.example") as client:
            made = await create(client, **forwarded)
            assert made["urls"]["get"].startswith(origin)
            odd = await create(client, Host='a"><script>')
            assert "script" not in str(odd["urls"])


async def test_a_list_walk_is_not_disturbed_by_new_records(client: httpx.AsyncClient) -> None:
    made = [(await create(client, "[[outcome=hold]]"))["id"] for _ in range(105)]
    first = (await client.get("/v1/predictions")).json()
    assert [item["id"] for item in first["results"]] == made[:4:-1]
    assert first["previous"] is None
    await create(client, "[[outcome=hold]]")
    second = (await client.get(first["next"])).json()
    assert [item["id"] for item in second["results"]] == made[4::-1]
    assert second["next"] is None
    assert second["previous"] == "http://flux.test/v1/predictions"


async def test_a_list_is_filtered_by_time_and_source(client: httpx.AsyncClient) -> None:
    made = await create(client, "[[outcome=hold]]")
    at = made["created_at"]
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

    async def found(**query: str) -> int:
        answer = await client.get("/v1/predictions", params=query)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["results"])

    assert await found(created_after=at) == 1  # inclusive
    assert await found(created_before=at) == 0  # exclusive
    assert await found(created_before=later, created_after=at) == 1
    assert await found(source="web") == 0
    for bad in ({"created_after": "yesterday"}, {"source": "tv"}, {"cursor": "x"}):
        answer = await client.get("/v1/predictions", params=bad)
        assert answer.status_code == 422


async def test_only_the_own_predictions_are_listed(house: House) -> None:
    _, key = await house.keyring.create()
    _, other = await house.keyring.create()
    async with client_of(house, key) as anna, client_of(house, other) as ben:
        made = await create(anna)
        assert len((await anna.get("/v1/predictions")).json()["results"]) == 1
        assert (await ben.get("/v1/predictions")).json()["results"] == []
        assert (await ben.get(made["urls"]["get"])).status_code == 404


async def test_a_prediction_made_elsewhere_is_shown_and_cancelled_here(house: House) -> None:
    async with client_of(house) as client:
        body = {"prompt": "slow [[seconds=60]]"}
        made = await client.post("/v1/flux-pro-1.1", json=body)
        id_ = parse_id(made.json()["id"])
        shown = (await client.get(f"/v1/predictions/{id_}")).json()
        assert shown["model"] == "black-forest-labs/flux-1.1-pro"
        assert shown["input"]["prompt"] == body["prompt"]
        ended = (await client.post(f"/v1/predictions/{shown['id']}/cancel")).json()
        assert ended["status"] == "canceled"
        listed = (await client.get("/v1/predictions")).json()["results"]
        assert [item["id"] for item in listed] == [shown["id"]]


async def test_a_limited_key_is_told_when_to_come_back(house: House) -> None:
    _, key = await house.keyring.create(rate_per_minute=2)
    async with client_of(house, key) as client:
        body = {"input": {"prompt": "x"}}
        first = await client.post(PRO, json=body)
        assert first.headers["ratelimit-remaining"] == "1"
        await client.post(PRO, json=body)
        last = await client.post(PRO, json=body)
        assert last.status_code == 429
        told = last.json()
        assert told["detail"].startswith("Request was throttled. Your rate limit resets in ~")
        assert last.headers["retry-after"] == str(told["retry_after"])
        assert last.headers["ratelimit-remaining"] == "0"
        assert last.headers["ratelimit-reset"] == str(told["retry_after"])
        assert set(told) == {"detail", "status", "retry_after"}
        assert (await client.get("/v1/predictions")).status_code == 200


async def test_a_full_queue_is_a_429(tmp_path: Path) -> None:
    flags = {"simulator": {"outcome": "hold"}, "limits": {"queue_max": 1}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        await create(client)
        full = await client.post(PRO, json={"input": {"prompt": "x"}})
        assert full.status_code == 429
        assert "~" in full.json()["detail"]
        assert full.headers["retry-after"] == str(full.json()["retry_after"])


async def test_a_key_without_the_model_is_forbidden(house: House) -> None:
    _, key = await house.keyring.create(models=["black-forest-labs/flux-schnell"])
    async with client_of(house, key) as client:
        answer = await client.post(PRO, json={"input": {"prompt": "x"}})
        assert (answer.status_code, answer.json()["title"]) == (403, "Permission denied")


@pytest.mark.parametrize(("literal", "word"), [(False, "canceled"), (True, "aborted")])
async def test_a_deadline_before_the_start_is_canceled_unless_literal(
    tmp_path: Path, literal: bool, word: str
) -> None:
    flags = {"simulator": {"outcome": "hold"}, "replicate": {"literal_aborted": literal}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        made = await create(client, **{"Cancel-After": "5s"})
        id_ = parse_id(made["id"])
        assert id_ is not None
        await house.predictions.expire(await house.predictions.get(id_))
        shown = (await client.get(made["urls"]["get"])).json()
        assert (shown["status"], shown["output"]) == (word, None)
        assert "started_at" not in shown
        events = await client.get(made["urls"]["stream"])
        assert 'data: {"reason":"canceled"}' in events.text


async def test_removed_data_leave_the_record(house: House, client: httpx.AsyncClient) -> None:
    made = await finished(client)
    for blob in await house.store.strip(datetime.now(UTC) + timedelta(seconds=1)):
        await house.blobs.delete(blob.key)
    shown = (await client.get(made["urls"]["get"])).json()
    assert shown["data_removed"] is True
    assert (shown["output"], shown["input"], shown["logs"]) == (None, {}, "")
    assert shown["status"] == "succeeded"
    assert (await client.get(made["output"])).status_code == 404
    events = await client.get(made["urls"]["stream"])
    assert events.text.rstrip().endswith("data: {}")


async def test_a_wait_is_answered_starting_when_the_server_goes_down(tmp_path: Path) -> None:
    flags = {"dispatch": {"drain_s": 0.1}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        asked = asyncio.create_task(
            client.post(PRO, json={"input": {"prompt": SLOW}}, headers={"Prefer": "wait"})
        )
        while not (await client.get("/v1/predictions")).json()["results"]:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        house.bus.close()
        answer = await asked
        assert time.monotonic() - began < 1
        assert (answer.status_code, answer.json()["status"]) == (202, "starting")


async def test_a_repeated_name_waits_for_the_same_prediction(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "one", **WAIT}
    first, second = await asyncio.gather(
        create(client, "x [[seconds=0.3]]", **headers),
        create(client, "x [[seconds=0.3]]", **headers),
    )
    assert first["id"] == second["id"]
    assert first["status"] == second["status"] == "succeeded"
    assert len((await client.get("/v1/predictions")).json()["results"]) == 1


async def test_a_name_belongs_to_its_key(house: House) -> None:
    _, key = await house.keyring.create()
    _, other = await house.keyring.create()
    async with client_of(house, key) as anna, client_of(house, other) as ben:
        first = await create(anna, **{"Idempotency-Key": "one"})
        second = await create(ben, **{"Idempotency-Key": "one"})
        assert first["id"] != second["id"]


async def test_bad_bodies_are_told_apart(client: httpx.AsyncClient) -> None:
    deep: Any = "x"
    for _ in range(60):
        deep = [deep]
    for body, status in [
        (b"", 400),
        (b"[1]", 400),
        (b"\xff\xfe", 400),
        (b'{"input": {"prompt": "x", "n": NaN}}', 400),
        (b'{"input": {"prompt": "x", "n": 1e999}}', 422),
        (b'{"input": {"prompt": "\\ud800"}}', 400),
        (b"[" * 100_000, 400),
        (b'{"input": {"prompt": "x", "guidance": 1' + b"0" * 400 + b"}}", 422),
        (b'{"input": {"prompt": "x", "seed": 1' + b"0" * 400 + b"}}", 201),
        (b'{"input": {"prompt": "x", "seed": 1' + b"0" * 5000 + b"}}", 400),
        (b'{"input": []}', 422),
        (b'{"input": null}', 422),
        (b"{}", 422),
    ]:
        answer = await client.post(PRO, content=body)
        assert answer.status_code == status, (body[:40], answer.text)
    answer = await client.post(PRO, json={"input": {"prompt": "x", "deep": deep}})
    assert answer.status_code == 422
    form = await client.post(
        PRO,
        content=b'{"input": {"prompt": "x"}}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert form.status_code == 201


async def test_a_body_over_the_cap_is_a_413(tmp_path: Path) -> None:
    flags = {"limits": {"body_max_bytes": 4096}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        answer = await client.post(PRO, json={"input": {"prompt": "x" * 5000}})
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"


async def test_the_page_of_a_prediction_shows_its_picture_and_escapes(
    client: httpx.AsyncClient,
) -> None:
    made = await create(client, "<script>alert(1)</script>", **WAIT)
    page = await client.get(made["urls"]["web"])
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text
    assert made["output"].removeprefix("http://flux.test") in page.text
    assert (await client.get("/p/nothing")).status_code == 404
