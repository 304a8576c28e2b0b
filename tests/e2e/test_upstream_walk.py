"""Providers through the front door: resellers, names and fields, routes, refusals, cancels.

One real server, its channels set up in a file; fake providers in processes of their own.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import replicate
from replicate.helpers import FileOutput

from tests.fakes.walk import NATIVE, Door, is_picture, opened, until

KINDS = {
    "REPLICATE": ("replicate", "/replicate"),
    "BFL": ("bfl", "/flux"),
    "WAVESPEED": ("wavespeed", ""),
}
CONFIG = """
[simulator]
seconds = 0.02
steps = 2

[[upstream]]
name = "b"
kind = "bfl"
base_url = "{BFL}/flux/v1"
key_env = "WALK_KEY"
key_header = "bearer"
models = ["flux-kontext-pro"]

[[upstream]]
name = "w"
kind = "wavespeed"
base_url = "{WAVESPEED}/api/v3"
key_env = "WALK_KEY"
models = ["flux-kontext-max"]
cool_down_s = 1.0

[[upstream]]
name = "w-spare"
kind = "replicate"
base_url = "{REPLICATE}/replicate/v1"
key_env = "WALK_KEY"
models = ["flux-kontext-max"]
priority = 5

[[upstream]]
name = "r"
kind = "replicate"
base_url = "{REPLICATE}/replicate/v1"
key_env = "WALK_KEY"
models = { "flux-pro" = "acme/very-pro" }
rename = { "aspect_ratio" = "ratio", "safety_tolerance" = "" }
extra = { "tier" = "gold" }
cool_down_s = 1.0

[[upstream]]
name = "dear"
kind = "replicate"
base_url = "{REPLICATE}/replicate/v1"
key_env = "WALK_KEY"
models = ["flux-dev"]

[[upstream]]
name = "cheap"
kind = "wavespeed"
base_url = "{WAVESPEED}/api/v3"
key_env = "WALK_KEY"
models = ["flux-dev"]

[[upstream]]
name = "heavy"
kind = "replicate"
base_url = "{REPLICATE}/replicate/v1"
key_env = "WALK_KEY"
models = ["flux-schnell"]
weight = 4.0

[[upstream]]
name = "light"
kind = "wavespeed"
base_url = "{WAVESPEED}/api/v3"
key_env = "WALK_KEY"
models = ["flux-schnell"]

[[upstream]]
name = "narrow"
kind = "replicate"
base_url = "{REPLICATE}/replicate/v1"
key_env = "WALK_KEY"
models = ["flux-kontext-dev"]
concurrency = 1
priority = 20

[[upstream]]
name = "wide"
kind = "wavespeed"
base_url = "{WAVESPEED}/api/v3"
key_env = "WALK_KEY"
models = ["flux-kontext-dev"]

[[route]]
model = "flux-pro-1.1"
engine = "simulator"
"""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(tmp_path_factory.mktemp("walk"), KINDS, CONFIG) as found:
        yield found


# --- resellers, names, fields ---------------------------------------------------------------------


def test_a_task_of_wavespeed_is_made_at_a_reseller_of_bfl(door: Door) -> None:
    with door.caller() as caller:
        body = {"prompt": "ws to bfl", "enable_sync_mode": True}
        answer = caller.post("/api/v3/wavespeed-ai/flux-kontext-pro/text-to-image", json=body)
        data = answer.json()["data"]
        assert data["status"] == "completed", answer.text
        (url,) = data["outputs"]
        assert url.startswith(door.server.url)  # ours, whoever made it
        assert is_picture(caller.get(url).content)
    (work,) = door.fakes["BFL"].works("ws to bfl")
    assert work["model"] == "flux-kontext-pro"


def test_the_sdk_of_replicate_gets_a_picture_made_at_wavespeed(door: Door) -> None:
    client = replicate.Client(base_url=door.server.url, api_token=door.admin)
    output = client.run("black-forest-labs/flux-kontext-max", input={"prompt": "r to ws"})
    assert isinstance(output, FileOutput)
    assert is_picture(output.read())
    client._client.close()  # the SDK has no way of its own
    (work,) = door.fakes["WAVESPEED"].works("r to ws")
    assert work["model"] == "wavespeed-ai/flux-kontext-max/text-to-image"


def test_a_task_of_bfl_is_made_at_a_reseller_of_replicate_by_the_names_of_the_channel(
    door: Door,
) -> None:
    with door.caller(**{"x-key": door.admin}) as caller:
        body = {"prompt": "bfl to r", "seed": 7}
        task = caller.post("/v1/flux-pro", json=body).json()
        until(lambda: caller.get(task["polling_url"]).json()["status"] == "Ready")
        result = caller.get(task["polling_url"]).json()["result"]
        assert is_picture(caller.get(result["sample"]).content)
    (work,) = door.fakes["REPLICATE"].works("bfl to r")
    assert work["model"] == "acme/very-pro"
    assert (work["input"]["tier"], work["input"]["seed"]) == ("gold", 7)
    assert "safety_tolerance" not in work["input"]


def test_a_renamed_field_arrives_under_its_new_name(door: Door) -> None:
    door.made("flux-pro", "renamed", aspect_ratio="16:9")
    (work,) = door.fakes["REPLICATE"].works("renamed")
    assert work["input"]["ratio"] == "16:9"
    assert "aspect_ratio" not in work["input"]


# --- stand-ins ------------------------------------------------------------------------------------


def test_a_closed_model_with_a_stand_in_is_served_by_it_and_says_so(door: Door) -> None:
    done = door.made("flux-pro-1.1", "a stand-in")
    assert done["status"] == "succeeded"
    assert done["model"] == "black-forest-labs/flux-1.1-pro"
    assert done["engine"] == "simulator"


def test_a_closed_model_that_nobody_serves_is_refused_with_what_to_do(door: Door) -> None:
    name = "black-forest-labs/flux-1.1-pro-ultra"
    words = f"no engine or upstream serves {name}: add a [[route]] or an [[upstream]]"
    asks = {
        f"/v1/models/{name}/predictions": {"input": {"prompt": "x"}},
        "/v1/flux-pro-1.1-ultra": {"prompt": "x"},
        "/v1/images/generations": {"model": "flux-pro-1.1-ultra", "prompt": "x"},
        f"{NATIVE}/predictions": {"model": name, "prompt": "x"},
    }
    with door.caller() as caller:
        for path, body in asks.items():
            answer = caller.post(path, json=body)
            assert answer.status_code == 503, (path, answer.text)
            assert words in answer.text, path


# --- routes ---------------------------------------------------------------------------------------


def test_the_cheaper_of_two_equal_channels_gets_the_work(door: Door) -> None:
    door.price(model="flux-dev", channel="dear", per_image=0.05)
    door.price(model="flux-dev", channel="cheap", per_image=0.01)
    assert at_once(door, "flux-dev", "price", 8) == ["cheap"] * 8
    until(lambda: len(door.fakes["WAVESPEED"].works("price")) == 8)


def test_weights_share_the_work(door: Door) -> None:
    """4 to 1: that 60 draws leave one out, or turn round, happens once in a million runs."""
    engines = at_once(door, "flux-schnell", "weight", 60)
    counts = {"REPLICATE": engines.count("heavy"), "WAVESPEED": engines.count("light")}
    assert counts["REPLICATE"] > counts["WAVESPEED"] > 0
    assert sum(counts.values()) == 60
    until(lambda: {name: len(door.fakes[name].works("weight")) for name in counts} == counts)


def test_a_full_channel_is_passed_over(door: Door) -> None:
    door.fakes["REPLICATE"].play({"outcome": "hang"})
    first = door.asked("flux-kontext-dev", "load 1")
    until(lambda: door.channel("narrow")["open"] == 1)
    second = door.made("flux-kontext-dev", "load 2")
    assert (first["engine"], second["engine"]) == ("narrow", "wide")
    with door.caller() as caller:
        caller.post(f"{NATIVE}/predictions/{first['id']}/cancel")
    until(lambda: door.channel("narrow")["open"] == 0)


def test_what_was_sent_to_a_channel_before_it_was_full_goes_on_to_another(door: Door) -> None:
    door.fakes["REPLICATE"].play({"outcome": "hang"})
    at_once(door, "flux-kontext-dev", "burst", 6)
    until(lambda: len(door.fakes["WAVESPEED"].works("burst")) == 5)
    (work,) = door.fakes["REPLICATE"].works("burst")
    (held,) = [row for row in door.told("attempts") if row["upstream_id"] == work["id"]
               and row["channel"] == "narrow"]  # fmt: skip
    with door.caller() as caller:
        caller.post(f"{NATIVE}/predictions/{held['prediction_id']}/cancel")
    until(lambda: door.channel("narrow")["open"] == 0)


# --- refusals, cancels ----------------------------------------------------------------------------


def test_a_refused_submission_goes_on_while_its_channel_rests_and_comes_back(door: Door) -> None:
    door.fakes["WAVESPEED"].play({"submit": "no_credit"})
    done = door.made("flux-kontext-max", "refused first")
    assert (done["status"], done["engine"]) == ("succeeded", "w-spare")
    resting = door.channel("w")
    assert resting["state"] == "resting" or resting["rests_s"] == 0  # it rested 1 s
    assert "insufficient balance" in resting["trouble"]
    assert resting["refused"] == 1
    assert door.metric("fluxserve_upstream_refused_total", channel="w") == 1
    until(lambda: door.channel("w")["state"] == "probing")
    assert door.metric("fluxserve_upstream_state", channel="w", state="probing") == 1
    assert door.made("flux-kontext-max", "well again")["engine"] == "w"
    back = door.channel("w")
    assert (back["state"], back["trouble"]) == ("ready", "")


def test_a_channel_that_refuses_shows_that_it_rests(door: Door) -> None:
    door.fakes["REPLICATE"].play({"submit": "wrong_key"})
    done = door.made("flux-pro", "wrong key")
    assert done["error"]["code"] == "upstream_failed"
    assert "valid authentication token" in done["error"]["message"]
    resting = door.channel("r")
    assert (resting["state"], resting["rests_s"] > 0) == ("resting", True)
    assert door.metric("fluxserve_upstream_state", channel="r", state="resting") == 1
    assert door.made("flux-pro", "after the rest")["status"] == "succeeded"
    assert door.channel("r")["state"] == "ready"


@pytest.mark.parametrize(
    ("act", "code"),
    [({"outcome": "fail", "reason": "out of paint"}, "upstream_failed"),
     ({"submit": "drop_after", "outcome": "fail", "reason": "out of paint"}, "upstream_failed")],
)  # fmt: skip
def test_after_its_submission_nothing_goes_to_another_channel(
    door: Door, act: dict[str, str], code: str
) -> None:
    prompt = f"no second try {act.get('submit')}"
    door.fakes["WAVESPEED"].play(act)
    done = door.made("flux-kontext-max", prompt)
    assert (done["status"], done["engine"]) == ("failed", "w")
    assert "out of paint" in done["error"]["message"]
    assert len(door.fakes["WAVESPEED"].works(prompt)) == 1
    assert door.fakes["REPLICATE"].works(prompt) == []


def test_a_cancel_of_one_dialect_reaches_the_provider_of_another(door: Door) -> None:
    door.fakes["REPLICATE"].play({"outcome": "hang"})
    with door.caller(**{"x-key": door.admin}) as caller:
        task = caller.post("/v1/flux-pro", json={"prompt": "cancel me"}).json()
        until(lambda: door.fakes["REPLICATE"].works("cancel me"))
        assert caller.post("/v1/cancel", params={"id": task["id"]}).status_code == 200
        until(lambda: door.fakes["REPLICATE"].works("cancel me")[0]["canceled"])
        poll = caller.get(task["polling_url"]).json()
    assert "cancelled" in str(poll), poll
    until(lambda: door.told("attempts", channel="r")[0]["state"] == "canceled")


def test_log_and_times_of_the_provider_appear_in_the_answer(door: Door) -> None:
    client = replicate.Client(base_url=door.server.url, api_token=door.admin)
    made = client.predictions.create(model="black-forest-labs/flux-pro", input={"prompt": "logs"})
    made.wait()
    client._client.close()
    assert made.logs is not None
    assert made.logs.startswith("Using seed: ")
    assert "100%" in made.logs
    assert made.metrics is not None
    assert made.metrics["predict_time"] == 1.25


# --- reasons, in each dialect ---------------------------------------------------------------------


def test_the_reason_of_a_failure_is_kept_in_every_dialect(door: Door) -> None:
    for name, prompt in (("REPLICATE", "reason r"), ("BFL", "reason b")):
        model = {"REPLICATE": "flux-pro", "BFL": "flux-kontext-pro"}[name]
        door.fakes[name].play(*[{"outcome": "fail", "reason": "out of paint"}] * 3)
        with door.caller() as caller:
            own = f"/v1/models/black-forest-labs/{model}/predictions"
            body = {"input": {"prompt": prompt}}
            said = caller.post(own, json=body, headers={"Prefer": "wait=20"}).json()
            assert (said["status"], "out of paint" in said["error"]) == ("failed", True)
            picture = {"model": model, "prompt": prompt}
            openai = caller.post("/v1/images/generations", json=picture)
            assert openai.status_code == 502
            assert "out of paint" in openai.json()["error"]["message"]
            end = _bfl_end(caller, model, prompt)
            assert (end["status"], "out of paint" in str(end["details"])) == ("Error", True)


def test_moderation_keeps_its_kind_and_its_reason_in_every_dialect(door: Door) -> None:
    door.fakes["BFL"].play(*[{"outcome": "moderated_input"}] * 3)
    with door.caller() as caller:
        sync = {"prompt": "moderated", "enable_sync_mode": True}
        path = "/api/v3/wavespeed-ai/flux-kontext-pro/text-to-image"
        data = caller.post(path, json=sync).json()["data"]
        assert data["status"] == "failed"
        assert "Derivative Works Filter" in data["error"]
        picture = {"model": "flux-kontext-pro", "prompt": "moderated"}
        openai = caller.post("/v1/images/generations", json=picture)
        assert openai.json()["error"]["code"] == "moderation_blocked"
        assert "Derivative Works Filter" in openai.json()["error"]["message"]
        end = _bfl_end(caller, "flux-kontext-pro", "moderated")
    assert end["status"] == "Request Moderated"
    assert "Derivative Works Filter" in str(end["details"]["Moderation Reasons"])


def _bfl_end(caller: httpx.Client, model: str, prompt: str) -> dict[str, Any]:
    """What BFL's words say of a task at its end."""
    task = caller.post(f"/v1/{model}", json={"prompt": prompt}).json()
    until(lambda: caller.get(task["polling_url"]).json()["status"] != "Pending")
    return dict(caller.get(task["polling_url"]).json())


def at_once(door: Door, model: str, prompt: str, count: int) -> list[str]:
    """The engines chosen for so many requests, made four at a time."""
    body = {"model": model, "prompt": prompt}
    with door.caller() as caller, ThreadPoolExecutor(4) as pool:

        def ask(number: int) -> str:
            return str(caller.post(f"{NATIVE}/predictions", json=body).json()["engine"])

        return list(pool.map(ask, range(count)))
