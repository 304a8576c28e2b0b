"""The fakes are what other tests measure by, so they are tested themselves."""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest
from PIL import Image

from .bfl import FakeBfl
from .openai import FakeOpenai
from .provider import FakeProvider
from .replicate import FakeReplicate
from .script import Act, Outcome, Output, Poll, Submit
from .server import serving
from .wavespeed import FakeWavespeed

BEARER = {"authorization": "Bearer fake-key"}
INPUT = {"prompt": "a fox", "seed": 7}
KONTEXT = "/v1/models/black-forest-labs/flux-kontext-pro/predictions"


@dataclass(frozen=True, slots=True)
class Asked:
    kind: type[FakeProvider]
    path: str
    headers: dict[str, str]
    body: dict[str, object]


KINDS = [
    Asked(FakeReplicate, KONTEXT, BEARER, {"input": INPUT}),
    Asked(FakeBfl, "/v1/flux-kontext-pro", {"x-key": "fake-key"}, dict(INPUT)),
    Asked(FakeWavespeed, "/api/v3/wavespeed-ai/flux-dev", BEARER, dict(INPUT)),
    Asked(FakeOpenai, "/v1/images/generations", BEARER, {"model": "gpt-image-1", **INPUT}),
]


@pytest.fixture(params=KINDS, ids=lambda asked: asked.kind.__name__)
def asked(request: pytest.FixtureRequest) -> Asked:
    value = request.param
    assert isinstance(value, Asked)
    return value


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def started(asked: Asked, stack: ExitStack) -> tuple[FakeProvider, httpx.Client]:
    fake = asked.kind()
    origin = stack.enter_context(serving(fake.app()))
    client = httpx.Client(base_url=origin, headers=asked.headers, trust_env=False, timeout=5)
    return fake, stack.enter_context(client)


def test_a_submission_is_counted_once(asked: Asked, stack: ExitStack) -> None:
    fake, client = started(asked, stack)
    assert client.post(asked.path, json=asked.body).is_success
    assert fake.submissions == 1


def test_a_wrong_key_is_refused_and_not_counted(asked: Asked, stack: ExitStack) -> None:
    fake, client = started(asked, stack)
    wrong = {name: value.replace("fake-key", "other") for name, value in asked.headers.items()}
    assert client.post(asked.path, json=asked.body, headers=wrong).status_code in {401, 403}
    assert (fake.submissions, fake.refused) == (0, 1)


@pytest.mark.parametrize(("fault", "accepted"), [(Submit.DROP_BEFORE, 0), (Submit.DROP_AFTER, 1)])
def test_a_dropped_answer_tells_nothing(
    asked: Asked, stack: ExitStack, fault: Submit, accepted: int
) -> None:
    fake, client = started(asked, stack)
    fake.script.then(Act(submit=fault))
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(asked.path, json=asked.body)
    assert fake.submissions == accepted


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Submit.ERROR_BEFORE, {503}),
        (Submit.ERROR_AFTER, {503}),
        (Submit.NO_CREDIT, {402, 429}),
        (Submit.UNKNOWN_MODEL, {404}),
        (Submit.INVALID, {400, 422}),
        (Submit.RATE_LIMITED, {429}),
        (Submit.ERROR_INSIDE, {200}),
        (Submit.HTML_AFTER, {200}),
        (Submit.REDIRECT, {307}),
    ],
)
def test_every_fault_of_a_submission_has_its_status(
    asked: Asked, stack: ExitStack, fault: Submit, status: set[int]
) -> None:
    fake, client = started(asked, stack)
    fake.script.then(Act(submit=fault))
    assert client.post(asked.path, json=asked.body).status_code in status
    assert fake.submissions == int(fault.accepts)


def test_replicate_is_polled_listed_and_cancelled(stack: ExitStack) -> None:
    fake, client = started(KINDS[0], stack)
    fake.script.then(Act(pending_polls=1), Act(outcome=Outcome.HANG))
    first = client.post(KONTEXT, json={"input": INPUT}).json()
    assert first["status"] == "starting"
    path = f"/v1/predictions/{first['id']}"
    assert client.get(path).json()["status"] == "processing"
    done = client.get(path).json()
    assert done["status"] == "succeeded"
    assert Image.open(io.BytesIO(client.get(done["output"]).content)).size == (64, 64)
    second = client.post(KONTEXT, json={"input": INPUT}).json()
    canceled = client.post(f"/v1/predictions/{second['id']}/cancel").json()
    assert canceled["status"] == "canceled"
    listed = client.get("/v1/predictions").json()["results"]
    assert [entry["id"] for entry in listed] == [second["id"], first["id"]]


def test_replicate_lists_in_pages_of_a_hundred(stack: ExitStack) -> None:
    _, client = started(KINDS[0], stack)
    for _ in range(101):
        client.post(KONTEXT, json={"input": INPUT})
    page = client.get("/v1/predictions").json()
    assert len(page["results"]) == 100
    assert len(client.get(page["next"]).json()["results"]) == 1


def test_bfl_answers_a_polling_url_that_needs_no_key(stack: ExitStack) -> None:
    _, client = started(KINDS[1], stack)
    url = client.post("/v1/flux-kontext-pro", json=INPUT).json()["polling_url"]
    del client.headers["x-key"]
    result = client.get(url).json()
    assert result["status"] == "Ready"
    assert client.get(result["result"]["sample"]).headers["content-type"] == "image/png"


def test_wavespeed_answers_inside_its_envelope(stack: ExitStack) -> None:
    _, client = started(KINDS[2], stack)
    answer = client.post("/api/v3/wavespeed-ai/flux-dev", json=INPUT).json()
    assert answer["code"] == 200
    task = client.get(answer["data"]["urls"]["get"]).json()["data"]
    assert task["status"] == "completed"
    assert client.get(task["outputs"][0]).headers["content-type"] == "image/jpeg"


def test_a_key_used_twice_is_one_submission_where_the_kind_honours_it(stack: ExitStack) -> None:
    fake, client = started(KINDS[0], stack)
    fake.honours_idempotency = True
    ids = [
        client.post(KONTEXT, json={"input": INPUT}, headers={"idempotency-key": "one"}).json()["id"]
        for _ in range(2)
    ]
    assert ids[0] == ids[1]
    assert fake.submissions == 1


def test_a_poll_can_lie_about_its_id(stack: ExitStack) -> None:
    fake, client = started(KINDS[0], stack)
    fake.script.then(Act(poll=Poll.WRONG_ID))
    job_id = client.post(KONTEXT, json={"input": INPUT}).json()["id"]
    assert client.get(f"/v1/predictions/{job_id}").json()["id"] != job_id


def test_half_a_picture_is_all_that_comes(stack: ExitStack) -> None:
    fake, client = started(KINDS[0], stack)
    fake.script.then(Act(output=Output.DROP))
    job_id = client.post(KONTEXT, json={"input": INPUT}).json()["id"]
    url = client.get(f"/v1/predictions/{job_id}").json()["output"]
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(url)


def test_webhooks_are_sent_again_when_the_script_says_so(stack: ExitStack) -> None:
    receiver = FakeReplicate()
    heard = stack.enter_context(serving(receiver.app()))
    fake, client = started(KINDS[0], stack)
    fake.script.then(Act(webhooks=3))
    body = {"input": INPUT, "webhook": f"{heard}/v1/predictions"}
    client.post(KONTEXT, json=body)
    client.get("/v1/predictions")  # the same connection, so the background task is over
    for _ in range(100):
        if len(fake.webhook_answers) == 3:
            break
        client.get("/v1/predictions")
    assert len(fake.webhook_answers) == 3
