"""Who asked for news of a run gets it, though a provider does the work."""

import json
from pathlib import Path

from tests.clients.replicate.receiver import receiving
from tests.fakes.walk import opened

CONFIG = """
[fetch]
allow = ["127.0.0.0/8"]

[[upstream]]
name = "r"
kind = "replicate"
base_url = "{REPLICATE}/replicate/v1"
key_env = "WALK_KEY"
"""


def test_what_a_provider_logs_is_told_while_it_works(tmp_path: Path) -> None:
    kinds = {"REPLICATE": ("replicate", "/replicate")}
    with opened(tmp_path, kinds, CONFIG) as door, receiving() as receiver:
        door.fakes["REPLICATE"].play({"work_s": 3.0})
        body = {
            "input": {"prompt": "a fox"},
            "webhook": receiver.url,
            "webhook_events_filter": ["logs", "completed"],
        }
        with door.caller() as caller:
            path = "/v1/models/black-forest-labs/flux-dev/predictions"
            answer = caller.post(path, json=body)
            assert answer.status_code == 201, answer.text
        messages = [json.loads(receiver.take()[1])]
        while messages[-1]["status"] != "succeeded":
            messages.append(json.loads(receiver.take()[1]))
    first = messages[0]
    assert (first["id"], first["status"]) == (answer.json()["id"], "processing")
    assert "Using seed" in first["logs"]
    assert len(messages) >= 2
