"""Money over HTTP: usage, prices, submissions and channels, for an admin and for a key."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxserve.app import House
from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import ErrorCode, Failure
from fluxserve.core.events import Event, EventKind
from fluxserve.core.ids import new_id
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import ImageParams, Origin
from fluxserve.settings import load
from tests.dialects.served import client_of, house_on
from tests.fakes.replicate import FakeReplicate
from tests.fakes.server import serving

ROOT = "/fluxserve/v1"
MODEL = "black-forest-labs/flux-kontext-pro"
BODY = {"model": MODEL, "prompt": "a fox"}


@asynccontextmanager
async def provided(folder: Path, origin: str) -> AsyncIterator[House]:
    """A house with one upstream, `provider`, at `origin`; not started."""
    channel = {
        "name": "provider",
        "kind": "replicate",
        "base_url": origin,
        "key_env": "PROVIDER_KEY",
        "reconcile_grace_s": 0.2,
    }
    flags: dict[str, Any] = {"data_dir": str(folder), "upstream": [channel]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROVIDER_KEY", "fake-key")
        house = House(load(flags, environ={}))
    await house.database.start()
    try:
        yield house
    finally:
        await house.database.stop()


async def unknown_of(house: House) -> Attempt:
    """A submission that nobody can tell of, given up, of a prediction that has failed, held for."""
    at = datetime.now(UTC)
    prediction = Prediction(
        id=new_id(),
        request=house.catalog.complete(ImageParams(model=MODEL, prompt="a fox")),
        origin=Origin(dialect="native"),
        engine="provider",
        created_at=at,
    )

    def event(kind: EventKind) -> Event:
        return Event(prediction_id=prediction.id, kind=kind, at=at)

    await house.store.add(prediction, event(EventKind.QUEUED))
    claimed = await house.store.claim(
        "provider", owner="upstream", at=at, lease_until=at + timedelta(seconds=60)
    )
    assert claimed is not None
    running = claimed[0]
    attempt = Attempt(
        id=new_id(),
        prediction_id=running.id,
        fence=running.attempt,
        channel="provider",
        model=MODEL,
        created_at=at,
        next_at=at,
    )
    await house.attempts.intend(attempt, at + timedelta(seconds=60))
    failure = Failure(code=ErrorCode.UPSTREAM_UNKNOWN, message="no answer")
    doubted = replace(attempt, state=AttemptState.UNKNOWN, failure=failure, next_at=None)
    await house.attempts.move(attempt, doubted)
    await house.store.move(running, running.fail(failure, at), event(EventKind.FINISHED))
    return doubted


async def until_ended(house: House, attempt_id: str) -> None:
    """Wait for the last move of a submission."""
    async with asyncio.timeout(10):
        while (await house.attempts.get(attempt_id)).state.is_open:
            await asyncio.sleep(0.01)


def asking(house: House, key: str = "") -> httpx.AsyncClient:
    return client_of(house, key)


async def key_of(client: httpx.AsyncClient, **said: Any) -> str:
    answer = await client.post(f"{ROOT}/keys", json=said)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["secret"])


async def made(client: httpx.AsyncClient) -> Mapping[str, Any]:
    answer = await client.post(f"{ROOT}/predictions", json=BODY)
    assert answer.status_code == 201, answer.text
    found = await client.get(f"{ROOT}/predictions/{answer.json()['id']}?wait=20")
    assert found.json()["status"] == "succeeded", found.text
    told: Mapping[str, Any] = found.json()
    return told


async def test_a_key_sees_its_own_spending_and_an_admin_everybodys(tmp_path: Path) -> None:
    async with house_on(tmp_path) as house, asking(house) as open_:
        admin = await key_of(open_, is_admin=True)
        async with asking(house, admin) as boss:
            first, second = await key_of(boss), await key_of(boss)
            price = {"model": MODEL, "per_image": 0.04}
            assert (await boss.post(f"{ROOT}/prices", json=price)).status_code == 201
            for key, count in ((first, 2), (second, 1)):
                async with asking(house, key) as caller:
                    for _ in range(count):
                        await made(caller)
                    own = (await caller.get(f"{ROOT}/usage")).json()
                    assert own["total_usd"] == pytest.approx(0.04 * count)
                    assert [row["predictions"] for row in own["results"]] == [count]
            everything = (await boss.get(f"{ROOT}/usage")).json()
            assert everything["total_usd"] == pytest.approx(0.12)
            assert len(everything["results"]) == 2


async def test_usage_comes_as_csv_too(tmp_path: Path) -> None:
    async with house_on(tmp_path) as house, asking(house) as client:
        await client.post(f"{ROOT}/prices", json={"per_image": 0.5})
        await made(client)
        answer = await client.get(f"{ROOT}/usage?format=csv")
        assert answer.headers["content-type"].startswith("text/csv")
        (row,) = csv.DictReader(io.StringIO(answer.text))
        assert row["model"] == MODEL
        assert (row["channel"], row["predictions"], float(row["usd"])) == ("simulator", "1", 0.5)
        past = await client.get(f"{ROOT}/usage?end=2020-01-01T00:00:00Z")
        assert past.json() == {"results": [], "total_usd": 0}


async def test_every_version_of_a_price_is_kept_newest_first(tmp_path: Path) -> None:
    async with house_on(tmp_path) as house, asking(house) as client:
        for usd in (0.04, 0.05):
            answer = await client.post(f"{ROOT}/prices", json={"model": MODEL, "per_image": usd})
            assert answer.status_code == 201
        listed = (await client.get(f"{ROOT}/prices")).json()["results"]
        assert [price["per_image"] for price in listed] == [0.05, 0.04]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "prices"),
        ("POST", "prices"),
        ("GET", "attempts"),
        ("POST", "attempts/0/resolve"),
        ("GET", "channels"),
    ],
)
async def test_what_operators_ask_is_for_admins_only(
    tmp_path: Path, method: str, path: str
) -> None:
    async with house_on(tmp_path) as house, asking(house) as open_:
        admin = await key_of(open_, is_admin=True)
        async with asking(house, admin) as boss:
            key = await key_of(boss)
        async with asking(house, key) as caller:
            answer = await caller.request(method, f"{ROOT}/{path}", json={})
        async with asking(house) as stranger:
            unknown = await stranger.request(method, f"{ROOT}/{path}", json={})
        assert answer.status_code == 403
        assert unknown.status_code == 401


async def test_an_unknown_submission_is_seen_and_voided_and_its_hold_released(
    tmp_path: Path,
) -> None:
    with serving(FakeReplicate().app()) as origin:
        async with provided(tmp_path, origin) as house:
            lost = await unknown_of(house)
            await house.upstreams.start()
            async with asking(house) as client:
                (row,) = (await client.get(f"{ROOT}/attempts?state=unknown")).json()["results"]
                assert (row["id"], row["error"]) == (lost.id, "no answer")
                (channel,) = (await client.get(f"{ROOT}/channels")).json()["results"]
                assert (channel["name"], channel["unresolved"]) == ("provider", 1)
                assert "fake-key" not in str(channel)
                text = (await client.get("/metrics")).text
                assert 'fluxserve_upstream_unresolved{channel="provider"} 1.0' in text
                url = f"{ROOT}/attempts/{lost.id}/resolve"
                answer = await client.post(url, json={"outcome": "void"})
                assert answer.json()["state"] == "void", answer.text
                assert (await client.post(url, json={"outcome": "void"})).status_code == 409
                text = (await client.get("/metrics")).text
                assert 'fluxserve_upstream_unresolved{channel="provider"} 0.0' in text
            await house.upstreams.stop()


async def test_voiding_releases_what_was_held(tmp_path: Path) -> None:
    async with provided(tmp_path, "http://127.0.0.1:9") as house, asking(house) as client:
        assert (await client.post(f"{ROOT}/prices", json={"per_image": 0.04})).status_code == 201
        lost = await unknown_of(house)
        kinds = [entry.kind for entry in await house.money.entries(lost.prediction_id)]
        assert kinds == ["hold"]
        url = f"{ROOT}/attempts/{lost.id}/resolve"
        assert (await client.post(url, json={"outcome": "void"})).status_code == 200
        kinds = [entry.kind for entry in await house.money.entries(lost.prediction_id)]
        assert kinds == ["hold", "release"]


async def test_a_submission_that_happened_after_all_is_followed_to_its_bill(tmp_path: Path) -> None:
    fake = FakeReplicate()
    with serving(fake.app()) as origin:
        headers = {"Authorization": "Bearer fake-key"}
        url = f"{origin}/v1/models/{MODEL}/predictions"
        async with httpx.AsyncClient(trust_env=False, headers=headers) as direct:
            job = (await direct.post(url, json={"input": {"prompt": "a fox"}})).json()
        async with provided(tmp_path, origin) as house:
            async with asking(house) as client:
                await client.post(f"{ROOT}/prices", json={"per_image": 0.04})
            lost = await unknown_of(house)
            await house.upstreams.start()
            async with asking(house) as client:
                said = {"outcome": "accepted", "upstream_id": job["id"]}
                answer = await client.post(f"{ROOT}/attempts/{lost.id}/resolve", json=said)
                assert answer.json()["state"] == "accepted", answer.text
                await until_ended(house, lost.id)
            await house.upstreams.stop()
            ended = await house.attempts.get(lost.id)
            kinds = [entry.kind for entry in await house.money.entries(lost.prediction_id)]
        assert ended.upstream_id == job["id"]
        assert ended.state in (AttemptState.DONE, AttemptState.CANCELED)
        paid = "settle" if ended.state is AttemptState.DONE else "release"
        assert kinds == ["hold", paid]
        assert fake.submissions == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "outcome"),
        ({"outcome": "maybe"}, "outcome"),
        ({"outcome": "accepted"}, "upstream_id"),
        ({"outcome": "void", "upstream_id": "x"}, "upstream_id"),
    ],
)
async def test_a_decision_that_says_nothing_names_its_field(
    tmp_path: Path, body: Mapping[str, str], field: str
) -> None:
    async with house_on(tmp_path) as house, asking(house) as client:
        answer = await client.post(f"{ROOT}/attempts/{'0' * 32}/resolve", json=body)
        assert answer.status_code == 422
        assert field in answer.text
        said = {"outcome": "void"}
        gone = await client.post(f"{ROOT}/attempts/{'0' * 32}/resolve", json=said)
        assert gone.status_code == 404


async def test_metrics_show_each_channel(tmp_path: Path) -> None:
    with serving(FakeReplicate().app()) as origin:
        async with provided(tmp_path, origin) as house, asking(house) as client:
            await house.upstreams.start()
            done = await made(client)
            (attempt,) = await house.attempts.of(str(done["id"]))
            await until_ended(house, attempt.id)
            text = (await client.get("/metrics")).text
            await house.upstreams.stop()
    label = 'channel="provider"'
    for line in (
        f"fluxserve_upstream_submitted_total{{{label}}} 1.0",
        f"fluxserve_upstream_refused_total{{{label}}} 0.0",
        f"fluxserve_upstream_unknown_total{{{label}}} 0.0",
        f"fluxserve_upstream_resubmitted_total{{{label}}} 0.0",
        f"fluxserve_upstream_open{{{label}}} 0.0",
        f'fluxserve_upstream_state{{{label},state="ready"}} 1.0',
        f'fluxserve_upstream_state{{{label},state="resting"}} 0.0',
    ):
        assert line in text, line
