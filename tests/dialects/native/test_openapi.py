"""The OpenAPI document says what the server does: every operation, and every answer it gives."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.dialects.native import DIALECT, MOUNT
from fluxserve.dialects.native.openapi import document, page
from fluxserve.dialects.wire import dump
from fluxserve.engines.local.process import EngineProcess
from fluxserve.engines.local.start import Setup
from tests.dialects.native.fitting import KNOWN, TYPES, misfits, references, resolved, schemas
from tests.dialects.native.test_money import provided, unknown_of
from tests.dialects.served import client_of, house_on, png

DOCUMENT: Mapping[str, Any] = json.loads(json.dumps(document(MOUNT, "http://flux.test")))
COMPONENTS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    (method.upper(), path): one
    for path, methods in DOCUMENT["paths"].items()
    for method, one in methods.items()
}
CLOSED = "http://127.0.0.1:9/x"  # nobody listens there
LOOPBACK = {"fetch": {"allow": ["127.0.0.0/8"]}}


# --- the document by itself ---------------------------------------------------------------------


def test_every_reference_leads_somewhere_and_every_shape_is_led_to() -> None:
    found = set(references(DOCUMENT))
    for pointer in found:
        assert resolved(DOCUMENT, pointer)
    assert {f"#/components/schemas/{name}" for name in COMPONENTS} <= found


def test_what_an_operation_must_say_is_said() -> None:
    names = [one["operationId"] for one in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    for (method, path), one in OPERATIONS.items():
        told = one.get("parameters", [])
        placed = [(parameter["name"], parameter["in"]) for parameter in told]
        assert len(set(placed)) == len(placed)
        in_path = {name for name, place in placed if place == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        assert all(parameter["required"] for parameter in told if parameter["in"] == "path")
        assert all("schema" in parameter for parameter in told)
        assert "default" in one["responses"]
        assert ("requestBody" in one) <= (method in ("POST", "PUT"))
        for answer in one["responses"].values():
            assert "$ref" in answer or answer["description"]


def test_every_schema_speaks_the_language_of_3_1() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    places = [*COMPONENTS.values()]
    for one in OPERATIONS.values():
        places += [parameter["schema"] for parameter in one.get("parameters", [])]
        for side in (one.get("requestBody", {}), *one["responses"].values()):
            places += [media["schema"] for media in side.get("content", {}).values() if media]
    for whole in places:
        for schema in schemas(whole):
            assert set(schema) <= KNOWN, set(schema) - KNOWN  # `nullable` is of 3.0
            kinds = schema.get("type", [])
            assert set([kinds] if isinstance(kinds, str) else kinds) <= set(TYPES)
            assert set(schema.get("required", [])) <= set(schema.get("properties", {}))


async def test_every_operation_of_the_router_is_described_and_no_other(tmp_path: Path) -> None:
    async with house_on(tmp_path) as house:
        there = {
            (method, re.sub(r":\w+}", "}", route.path))
            for route in DIALECT.routes(house.services, MOUNT)
            for method in route.methods or ()
            if method != "HEAD"
        }
    assert there == set(OPERATIONS)


def test_the_page_shows_every_operation_and_every_shape() -> None:
    shown = page(MOUNT)
    for _, path in OPERATIONS:
        assert f"<code>{path}</code>" in shown
    for name, schema in COMPONENTS.items():
        assert f'<h3 id="{name}">' in shown
        for field in schema["properties"]:
            assert f"<code>{field}</code>" in shown
    assert set(re.findall(r'href="#(\w+)"', shown)) <= set(COMPONENTS)
    assert "<code>?wait</code>" in shown
    assert "<code>Idempotency-Key:</code>" in shown


# --- the document beside a server ---------------------------------------------------------------


class Checked:
    """Calls operations, and holds what they answer against the document."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.done: set[str] = set()

    async def __call__(self, method: str, path: str, **said: Any) -> Any:
        """The answer of a call that goes well: JSON, or else text."""
        one = operation_of(method, path)
        answer = await self._client.request(method, MOUNT + path, **said)
        told = one["responses"].get(str(answer.status_code))
        assert told, (method, path, answer.status_code, answer.text)
        self.done.add(one["operationId"])
        queries = {item["name"] for item in one.get("parameters", []) if item["in"] == "query"}
        assert set(answer.request.url.params) <= queries
        if "json" in said:
            schema = one["requestBody"]["content"]["application/json"]["schema"]
            assert misfits(DOCUMENT, schema, said["json"]) == []
        assert set(told.get("headers", {})) <= {name.title() for name in answer.headers}
        mime = answer.headers.get("content-type", "").partition(";")[0]
        assert set(told.get("content", {})) >= ({mime} if answer.content else set())
        if mime != "application/json":
            return answer.text
        assert misfits(DOCUMENT, told["content"][mime]["schema"], answer.json()) == []
        return answer.json()


def operation_of(method: str, path: str) -> Any:
    for (its_method, template), one in OPERATIONS.items():
        pattern = re.sub(r"{name}", ".+", re.sub(r"{id}", "[^/]+", template))
        if method == its_method and re.fullmatch(pattern, MOUNT + path.partition("?")[0]):
            return one
    raise AssertionError(f"{method} {path} is not described")


async def test_predictions_and_files_are_answered_as_described(tmp_path: Path) -> None:
    wish = {"model": "flux-dev", "prompt": "a fox", "preview_steps": 1}
    async with house_on(tmp_path, LOOPBACK) as house, client_of(house) as client:
        call = Checked(client)
        filed = await call("POST", "/files", files={"file": ("fox.png", png())})
        bare = await call("POST", "/files", content=png(), headers={"X-Filename": "fox.png"})
        assert bare["name"] == "fox.png"
        await call("GET", f"/files/{filed['id']}")
        hooked = {**wish, "webhook": CLOSED, "webhook_events": ["completed"]}
        made = await call("POST", "/predictions", json=hooked, headers={"Idempotency-Key": "1"})
        streamed = await call("GET", f"/predictions/{made['id']}/events")
        assert events_in(streamed) >= {"queued", "started", "progress", "output", "finished"}
        for images in ([filed["url"]], [CLOSED]):
            body = {**wish, "model": "flux-kontext-dev", "images": images, "approximate": []}
            edit = await call("POST", "/predictions", json=body)
            ended = await call("GET", f"/predictions/{edit['id']}?wait=20")
            assert ended["status"] == ("failed" if images == [CLOSED] else "succeeded")
        await call("POST", f"/predictions/{edit['id']}/cancel")
        found = await call("GET", "/predictions?limit=1&status=failed&model=flux-kontext-dev")
        assert len(found["results"]) == 1
        await call("GET", f"/predictions?cursor={found['next_cursor']}")
        last = {"Last-Event-ID": "999"}
        await call("GET", f"/predictions/{made['id']}/events", headers=last)
        await call("DELETE", f"/predictions/{edit['id']}")
        cards = await call("GET", "/models")
        await call("GET", f"/models/{cards['results'][0]['id']}")
        assert await call("GET", "/openapi.json") == DOCUMENT
        await call("GET", "/docs")


def events_in(stream: str) -> set[str]:
    """The kinds of the events in a stream, each of whose data fits what is said of its kind."""
    content = OPERATIONS["GET", f"{MOUNT}/predictions/{{id}}/events"]["responses"]["200"]["content"]
    shapes = content["text/event-stream"]["schema"]["x-events"]
    kinds = set()
    for block in stream.replace("\r\n", "\n").split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.splitlines())
        if "event" in lines:
            kinds.add(lines["event"])
            assert misfits(DOCUMENT, shapes[lines["event"]], json.loads(lines["data"])) == []
    return kinds


async def test_what_operators_ask_is_answered_as_described(tmp_path: Path) -> None:
    async with house_on(tmp_path, LOOPBACK) as house, client_of(house) as client:
        call = Checked(client)
        body = {"model": "flux-dev", "prompt": "a fox", "webhook": CLOSED}
        made = await call("POST", "/predictions", json=body)
        await call("GET", f"/predictions/{made['id']}?wait=20")
        key = await call("POST", "/keys", json={"name": "admin", "is_admin": True})
        client.headers["X-API-Key"] = key["secret"]
        more = {"models": ["flux-dev"], "expires_s": 60, "budget": 1.5}
        other = await call("POST", "/keys", json=more)
        await call("DELETE", f"/keys/{other['id']}")
        assert len((await call("GET", "/keys"))["results"]) == 2
        query = f"prediction_id={made['id']}"
        (message,) = (await call("GET", f"/deliveries?{query}"))["results"]
        await call("GET", f"/deliveries?state={message['state']}")
        await call("POST", f"/deliveries/{message['id']}/redeliver")
        assert (await call("GET", "/devices"))["results"]
        price = {"model": "flux-dev", "per_image": 0.1, "options": {"go_fast": 0.01}}
        await call("POST", "/prices", json={**price, "valid_from": "2026-01-01T00:00:00Z"})
        assert (await call("GET", "/prices"))["results"]
        paid = await call("POST", "/predictions", json={"model": "flux-dev", "prompt": "a fox"})
        await call("GET", f"/predictions/{paid['id']}?wait=20")
        assert (await call("GET", "/usage?start=2026-01-01T00:00:00Z"))["results"]
        rows = await call("GET", "/usage?format=csv&end=2030-01-01T00:00:00Z")
        assert rows.startswith("day,")


async def test_what_is_told_of_providers_is_as_described(tmp_path: Path) -> None:
    async with provided(tmp_path, CLOSED) as house, client_of(house) as client:
        call = Checked(client)
        lost = await unknown_of(house)
        assert (await call("GET", "/channels"))["results"]
        found = await call("GET", "/attempts?state=unknown&channel=provider")
        assert [row["id"] for row in found["results"]] == [lost.id]
        await call("POST", f"/attempts/{lost.id}/resolve", json={"outcome": "void"})


def test_the_walks_meet_every_operation() -> None:
    """What they call, read from their own source: a new operation must be walked through."""
    source = Path(__file__).read_text(encoding="utf-8")
    calls = re.findall(r'call\(\s*"(\w+)", f?"([^"]+)"', source)
    met = {
        operation_of(method, re.sub(r"{[^}]+}", "x", path))["operationId"] for method, path in calls
    }
    assert met == {one["operationId"] for one in OPERATIONS.values()}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/predictions", 422),
        ("GET", "/predictions/nobody", 404),
        ("GET", "/models/nobody", 404),
        ("GET", "/predictions?limit=many", 422),
        ("PUT", "/predictions", 405),
        ("GET", "/nothing", 404),
    ],
)
async def test_errors_are_answered_as_described(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with house_on(tmp_path) as house, client_of(house) as client:
        answer = await client.request(method, MOUNT + path, json={"prompt": "", "bogus": 1})
        assert answer.status_code == status
        error = DOCUMENT["components"]["responses"]["Error"]["content"]["application/json"]
        assert misfits(DOCUMENT, error["schema"], answer.json()) == []


def test_a_device_is_told_as_described(tmp_path: Path) -> None:
    process = EngineProcess(Setup(model=tmp_path, spool=tmp_path))
    assert misfits(DOCUMENT, COMPONENTS["Device"], process.facts) == []


async def test_a_webhook_is_told_as_described(tmp_path: Path) -> None:
    """The shape without when it may be done, which nobody needs who is told that it is done."""
    async with house_on(tmp_path) as house, client_of(house) as client:
        body = {"model": "flux-dev", "prompt": "a fox"}
        made = (await client.post(f"{MOUNT}/predictions", json=body)).json()
        prediction = await house.predictions.wait(made["id"], 20)
        links = house.services.links_on("http://flux.test", MOUNT)
        told = json.loads(dump(DIALECT.render(prediction, links)))
    assert misfits(DOCUMENT, COMPONENTS["Prediction"], told) == []
    assert set(COMPONENTS["Prediction"]["required"]) == set(told)


def test_what_is_left_out_or_added_does_not_fit() -> None:
    """The measure itself."""
    problem: dict[str, Any] = {"code": "not_found", "message": "x", "field": None, "problems": []}
    schema = COMPONENTS["Problem"]
    assert misfits(DOCUMENT, schema, problem) == []
    wrongs: list[dict[str, Any]] = [
        {**problem, "more": 1},
        {**problem, "code": "x"},
        {**problem, "field": 1},
        {**problem, "problems": [{}]},
        {name: value for name, value in problem.items() if name != "field"},
    ]
    assert all(misfits(DOCUMENT, schema, wrong) for wrong in wrongs)
