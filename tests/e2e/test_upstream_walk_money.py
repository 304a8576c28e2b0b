"""Money through the front door: budgets, balances, usage, and what nobody can tell of.

One real server in front of fake providers in processes of their own; every key has its budget.
"""

import csv
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import httpx
import pytest

from tests.fakes.walk import NATIVE, Door, opened, until

KINDS = {
    "BFL": ("bfl", "/flux"),
    "WAVESPEED": ("wavespeed", ""),
    "REPLICATE": ("replicate", "/replicate"),
}
CONFIG = """
[[upstream]]
name = "b"
kind = "bfl"
base_url = "{BFL}/flux/v1"
key_env = "WALK_KEY"
models = ["flux-kontext-pro"]

[[upstream]]
name = "w"
kind = "wavespeed"
base_url = "{WAVESPEED}/api/v3"
key_env = "WALK_KEY"
models = ["flux-kontext-max"]

[[upstream]]
name = "r"
kind = "replicate"
base_url = "{REPLICATE}/replicate/v1"
key_env = "WALK_KEY"
models = ["flux-pro"]
"""
PRO, MAX = "black-forest-labs/flux-kontext-pro", "black-forest-labs/flux-kontext-max"
SYNC = "/api/v3/wavespeed-ai/flux-kontext-pro/text-to-image"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A picture costs 4 cents, one of max 8."""
    with opened(tmp_path_factory.mktemp("walk"), KINDS, CONFIG) as found:
        found.price(per_image=0.04)
        found.price(model=MAX, per_image=0.08)
        yield found


def left(caller: httpx.Client, key: str) -> tuple[float, float]:
    """Cents by WaveSpeed's balance, and BFL's credits, of which each is one."""
    balance = caller.get("/api/v3/balance").json()["data"]["balance"]
    points = caller.get("/v1/credits", headers={"x-key": key}).json()["credits"]
    return round(balance * 100, 6), round(points, 6)


def test_of_20_requests_at_once_a_budget_for_5_accepts_5(door: Door) -> None:
    key = door.key(name="crowd", budget=0.20)
    with door.caller(key) as caller, ThreadPoolExecutor(20) as pool:
        body = {"model": PRO, "prompt": "a crowd"}

        def ask(number: int) -> httpx.Response:
            return caller.post(f"{NATIVE}/predictions", json=body)

        answers = list(pool.map(ask, range(20)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [201] * 5 + [402] * 15
        assert left(caller, key) == (0, 0)  # all of it is held
        for answer in answers:
            if answer.status_code == 201:
                assert door.ended(answer.json()["id"])["status"] == "succeeded"
        assert left(caller, key) == (0, 0)  # all of it is spent
    assert len(door.fakes["BFL"].works("a crowd")) == 5


def test_balance_and_credits_show_what_is_left_after_each_end(door: Door) -> None:
    key = door.key(name="saver", budget=1.0)
    with door.caller(key) as caller:
        assert left(caller, key) == (100, 100)
        body = {"prompt": "balance", "enable_sync_mode": True}
        assert caller.post(SYNC, json=body).json()["data"]["status"] == "completed"
        assert left(caller, key) == (96, 96)
        door.fakes["BFL"].play({"outcome": "fail"})  # nothing is charged
        assert caller.post(SYNC, json=body).json()["data"]["status"] == "failed"
        until(lambda: left(caller, key) == (96, 96))


def test_a_canceled_job_costs_what_its_provider_did_all_the_same(door: Door) -> None:
    """Replicate can cancel; WaveSpeed cannot, and makes the picture."""
    key = door.key(name="hesitant", budget=1.0)
    door.fakes["REPLICATE"].play({"outcome": "hang"})
    door.fakes["WAVESPEED"].play({"work_s": 1.0})
    with door.caller(key) as caller:
        for name, model in (("REPLICATE", "flux-pro"), ("WAVESPEED", MAX)):
            body = {"model": model, "prompt": "never mind"}
            asked = caller.post(f"{NATIVE}/predictions", json=body).json()
            until(partial(door.fakes[name].works, "never mind"))
            assert caller.post(asked["urls"]["cancel"]).json()["status"] == "canceled"
        assert left(caller, key)[0] <= 92  # what is not known yet stays held
        until(lambda: not any(door.channel(name)["open"] for name in "rw"))
        assert left(caller, key) == (92, 92)
        usage = caller.get(f"{NATIVE}/usage").json()
    assert [(row["channel"], row["usd"]) for row in usage["results"]] == [("w", 0.08)]
    (work,) = door.fakes["REPLICATE"].works("never mind")
    assert work["canceled"]


def test_usage_by_key_model_channel_and_day_adds_up_as_json_and_as_csv(door: Door) -> None:
    before = {(row["key_id"], row["channel"]): row["usd"] for row in door.told("usage")}
    keys = {name: door.key(name=name) for name in ("one", "two")}
    orders = [("one", PRO), ("one", PRO), ("one", MAX), ("two", MAX)]

    def make(order: tuple[str, str]) -> None:
        name, model = order
        with door.caller(keys[name]) as caller:
            body = {"model": model, "prompt": f"usage {name}"}
            id_ = caller.post(f"{NATIVE}/predictions", json=body).json()["id"]
        assert door.ended(id_)["status"] == "succeeded"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, orders))
    today = datetime.now(UTC).date().isoformat()
    ids = {row["name"]: row["id"] for row in door.told("keys")}
    with door.caller() as admin:
        told = admin.get(f"{NATIVE}/usage").json()
        text = admin.get(f"{NATIVE}/usage", params={"format": "csv"}).text
    rows = [row for row in told["results"] if (row["key_id"], row["channel"]) not in before]
    found = {
        (row["key_id"], row["model"], row["channel"], row["day"], row["predictions"], row["usd"])
        for row in rows
    }
    assert found == {
        (ids["one"], PRO, "b", today, 2, 0.08),
        (ids["one"], MAX, "w", today, 1, 0.08),
        (ids["two"], MAX, "w", today, 1, 0.08),
    }
    assert told["total_usd"] == pytest.approx(sum(row["usd"] for row in told["results"]))
    assert told["total_usd"] == pytest.approx(sum(before.values()) + 0.24)
    lines = list(csv.DictReader(io.StringIO(text)))
    asked = [{name: str(value) for name, value in row.items()} for row in told["results"]]
    assert lines == asked
    with door.caller(keys["two"]) as caller:  # a key sees its own
        own = caller.get(f"{NATIVE}/usage").json()
    assert [row["key_id"] for row in own["results"]] == [ids["two"]]


def test_what_nobody_can_tell_of_is_seen_held_and_settled_by_a_decision(door: Door) -> None:
    key = door.key(name="unlucky", budget=0.08)
    door.fakes["BFL"].play({"submit": "drop_after"}, {"submit": "drop_after"})
    with door.caller(key) as caller:
        for number in range(2):
            body = {"input": {"prompt": f"lost {number}"}}
            path = f"/v1/models/{PRO}/predictions"
            said = caller.post(path, json=body, headers={"Prefer": "wait=20"}).json()
            assert said["status"] == "failed", said
        unknown = door.told("attempts", state="unknown")
        assert [row["channel"] for row in unknown] == ["b", "b"]
        assert all("answer" in row["error"] for row in unknown), unknown
        until(lambda: door.metric("fluxserve_upstream_unresolved", channel="b") == 2)
        assert door.metric("fluxserve_upstream_unknown_total", channel="b") == 2
        assert door.channel("b")["unresolved"] == 2
        assert left(caller, key) == (0, 0)
        (work,) = door.fakes["BFL"].works("lost 0")
        happened = next(row for row in unknown if row["prediction_id"] == _first(caller))
        other = next(row for row in unknown if row is not happened)
        for attempt, decision in (
            (happened, {"outcome": "accepted", "upstream_id": work["id"]}),
            (other, {"outcome": "void"}),
        ):
            url = f"{NATIVE}/attempts/{attempt['id']}/resolve"
            with door.caller() as admin:
                answer = admin.post(url, json=decision)
            assert answer.status_code == 200, answer.text
        until(lambda: caller.get(f"{NATIVE}/usage").json()["results"])
        until(lambda: left(caller, key) == (4, 4))
        (spent,) = caller.get(f"{NATIVE}/usage").json()["results"]
    assert (spent["channel"], spent["usd"]) == ("b", 0.04)
    assert door.metric("fluxserve_upstream_unresolved", channel="b") == 0


def _first(caller: httpx.Client) -> str:
    """The oldest prediction of a key."""
    rows = caller.get(f"{NATIVE}/predictions").json()["results"]
    return str(rows[-1]["id"])


def test_wavespeed_prices_are_those_of_the_table(door: Door) -> None:
    with door.caller(door.key(name="reader")) as caller:
        asked = {"model_id": "wavespeed-ai/flux-kontext-pro/text-to-image"}
        one = caller.post("/api/v3/model/price", json=asked).json()["data"]
        assert (one["unit_price"], one["currency"]) == (0.04, "USD")
        many = caller.post("/api/v3/model/price", json={**asked, "inputs": {"num_images": 2}})
        assert many.json()["data"]["unit_price"] == 0.08
        bad = caller.post("/api/v3/model/price", json={**asked, "inputs": {"num_images": 99}})
        assert bad.status_code == 400
        assert "num_images" in bad.json()["message"]
        listed = caller.get("/api/v3/models").json()["data"]
        prices = {model["model_id"]: model["base_price"] for model in listed}
        assert prices["wavespeed-ai/flux-kontext-pro/text-to-image"] == 0.04
