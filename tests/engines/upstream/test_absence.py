"""Only a list that can be read, back to before the submission, proves that it never happened."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fluxserve.core.attempts import AttemptState
from fluxserve.core.prediction import PredictionStatus
from fluxserve.engines.upstream import reading
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.provider import FakeProvider
from tests.fakes.replicate import FakeReplicate
from tests.fakes.script import Act, Submit
from tests.fakes.wavespeed import FakeWavespeed

LISTING: dict[ChannelKind, Any] = {
    ChannelKind.REPLICATE: FakeReplicate,
    ChannelKind.WAVESPEED: FakeWavespeed,
}
PATHS = {ChannelKind.REPLICATE: "/v1/predictions", ChannelKind.WAVESPEED: "/api/v3/predictions"}
each_kind = pytest.mark.parametrize("kind", LISTING)

Answer = Callable[[FakeProvider, Request], Awaitable[Response]]
Patch = pytest.MonkeyPatch


def looks(fake: FakeProvider, kind: ChannelKind) -> int:
    return sum(heard.path == PATHS[kind] for heard in fake.heard)


def answering(*bodies: Any) -> Answer:
    """A list endpoint that answers these bodies in turn, the last one for ever."""
    left = list(bodies)

    async def listing(fake: FakeProvider, request: Request) -> Response:
        fake.note(request)
        body = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(body, str):
            return Response(body, media_type="text/html")
        return JSONResponse(body)

    return listing


async def lost(house: House, lend: Lend, kind: ChannelKind, **said: Any) -> FakeProvider:
    """A provider that took the first submission, and whose answer to it was lost."""
    fake, spec = lend(kind, **({"reconcile_grace_s": 0.1} | said))
    fake.script.then(Act(submit=Submit.DROP_AFTER))
    house.channel(spec)
    await house.open()
    return fake


UNREADABLE: list[tuple[ChannelKind, Any]] = [
    (ChannelKind.WAVESPEED, {"code": 429, "message": "too many requests", "data": None}),
    (ChannelKind.WAVESPEED, {"code": 500, "message": "internal error", "data": None}),
    (ChannelKind.WAVESPEED, {"code": 200, "message": "success", "data": None}),
    (ChannelKind.WAVESPEED, {"code": 200, "message": "success", "data": {"items": None}}),
    (ChannelKind.WAVESPEED, {"code": 200, "message": "success", "data": {"list": []}}),
    (ChannelKind.WAVESPEED, {"results": []}),
    (ChannelKind.REPLICATE, {"error": "too many requests"}),
    (ChannelKind.REPLICATE, {"data": []}),
    (ChannelKind.REPLICATE, {"results": None}),
    (ChannelKind.REPLICATE, {"results": {}}),
]


@pytest.mark.parametrize(("kind", "body"), UNREADABLE)
async def test_an_answer_without_a_list_is_no_proof_that_nothing_happened(
    house: House, lend: Lend, monkeypatch: Patch, kind: ChannelKind, body: Any
) -> None:
    monkeypatch.setattr(LISTING[kind], "listing", answering(body))
    fake = await lost(house, lend, kind)
    asked = await house.ask()
    await house.until(lambda: looks(fake, kind) >= 6)  # well past the grace period
    assert [a.state for a in await house.tries(asked)] == [AttemptState.UNKNOWN]
    assert fake.submissions == 1


@pytest.mark.parametrize(
    ("kind", "body"), [UNREADABLE[0], UNREADABLE[6], (ChannelKind.REPLICATE, "<html>")]
)
async def test_a_list_that_cannot_be_read_for_a_while_is_asked_again(
    house: House, lend: Lend, monkeypatch: Patch, kind: ChannelKind, body: Any
) -> None:
    well = LISTING[kind].listing
    left = [body] * 3

    async def listing(fake: FakeProvider, request: Request) -> Response:
        return await (answering(left.pop()) if left else well)(fake, request)

    monkeypatch.setattr(LISTING[kind], "listing", listing)
    fake = await lost(house, lend, kind)
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


VEILS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no input": lambda job: {k: v for k, v in job.items() if k != "input"},
    "an emptied input": lambda job: job | {"input": {}},
    "half of the input": lambda job: job | {"input": {"prompt": job["input"]["prompt"]}},
    "no time": lambda job: job | {"created_at": None},
    "no id": lambda job: job | {"id": None},
    "another address for callbacks": lambda job: job | {"webhook": "https://reseller.example/1"},
    "no object": lambda job: str(job["id"]),
}


@each_kind
@pytest.mark.parametrize("veil", VEILS)
async def test_a_list_that_does_not_show_the_jobs_well_is_no_proof(
    house: House, lend: Lend, monkeypatch: Patch, kind: ChannelKind, veil: str
) -> None:
    fake_kind = LISTING[kind]
    part = "render" if kind is ChannelKind.REPLICATE else "task"
    shown = getattr(fake_kind, part)

    def veiled(fake: FakeProvider, work: Any, origin: str) -> Any:
        return VEILS[veil](shown(fake, work, origin))

    async def listing(fake: FakeProvider, request: Request) -> Response:
        fake.note(request)
        jobs = [veiled(fake, work, "http://x") for work in fake.works.values()]
        data = {"page": 1, "total": len(jobs), "items": jobs}
        return JSONResponse({"code": 200, "data": data, "results": jobs, "next": None})

    monkeypatch.setattr(fake_kind, "listing", listing)
    fake = await lost(house, lend, kind)
    done = await house.made()
    assert done.failure is not None
    assert "not known" in done.failure.message
    assert [a.state for a in await house.tries(done)] == [AttemptState.UNKNOWN]
    assert fake.submissions == 1


@each_kind
async def test_jobs_of_other_submissions_do_not_hide_that_one_never_happened(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind, reconcile_grace_s=0.1)
    house.channel(spec)
    await house.open()
    await house.made(seed=7)
    fake.script.then(Act(submit=Submit.DROP_BEFORE))
    done = await house.made(seed=7)  # the same once more: its twin belongs to the first
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 2


async def test_a_page_that_is_shorter_than_asked_for_is_not_the_end_of_the_list(
    house: House, lend: Lend, monkeypatch: Patch
) -> None:
    other = {"id": "theirs", "input": {"prompt": "a cat", "seed": 1}}

    async def listing(fake: FakeWavespeed, request: Request) -> Response:
        fake.note(request)
        page = (await request.json())["page"]
        ours = [fake.task(work, "http://x") for work in fake.works.values()]
        at = datetime.now(UTC).isoformat()
        items = {1: [other | {"created_at": at}], 2: ours}.get(page, [])
        return JSONResponse(fake.envelope({"page": page, "items": items}))

    monkeypatch.setattr(FakeWavespeed, "listing", listing)
    fake = await lost(house, lend, ChannelKind.WAVESPEED)
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


async def test_an_empty_account_may_give_null_for_its_list(
    house: House, lend: Lend, monkeypatch: Patch
) -> None:
    body = {"code": 200, "message": "success", "data": {"total": 0, "items": None}}
    monkeypatch.setattr(FakeWavespeed, "listing", answering(body))
    fake, spec = lend(ChannelKind.WAVESPEED, reconcile_grace_s=0.1)
    fake.script.then(Act(submit=Submit.DROP_BEFORE))
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


@pytest.mark.parametrize(("link", "is_found"), [("?cursor=cD0yMDI2%3D%3D", True), ("?p=2", False)])
async def test_the_next_page_is_asked_for_as_it_is_named_or_nothing_is_proved(
    house: House, lend: Lend, monkeypatch: Patch, link: str, is_found: bool
) -> None:
    async def listing(fake: FakeReplicate, request: Request) -> Response:
        fake.note(request)
        if request.query_params.get("cursor") != "cD0yMDI2==":
            return JSONResponse({"results": [], "next": f"http://x/v1/predictions{link}"})
        ours = [fake.render(work, "http://x") for work in fake.works.values()]
        return JSONResponse({"results": ours, "next": None})

    monkeypatch.setattr(FakeReplicate, "listing", listing)
    fake = await lost(house, lend, ChannelKind.REPLICATE)
    done = await house.made()
    succeeded = PredictionStatus.SUCCEEDED
    assert done.status is (succeeded if is_found else PredictionStatus.FAILED), done.failure
    assert fake.submissions == 1


async def test_a_list_with_the_oldest_job_first_is_read_to_its_end(
    house: House, lend: Lend, monkeypatch: Patch
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)

    async def listing(fake: FakeReplicate, request: Request) -> Response:
        fake.note(request)
        if "cursor" in request.query_params:
            ours = [fake.render(work, "http://x") for work in fake.works.values()]
            return JSONResponse({"results": ours, "next": None})
        old = [
            {"id": f"old{hour}", "created_at": (long_ago + timedelta(hours=hour)).isoformat()}
            for hour in range(3)
        ]
        return JSONResponse({"results": old, "next": "http://x/v1/predictions?cursor=2"})

    monkeypatch.setattr(FakeReplicate, "listing", listing)
    fake = await lost(house, lend, ChannelKind.REPLICATE)
    done = await house.made()
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert fake.submissions == 1


def test_an_input_is_the_same_another_or_not_to_be_told() -> None:
    sent: dict[str, Any] = {"prompt": "a fox", "seed": 7, "image": ["x"], "none": None}
    assert reading.matches({"prompt": "a fox", "seed": 7, "more": 1}, sent) is True
    assert reading.matches({"prompt": "a fox", "seed": 8}, sent) is False
    assert reading.matches({"prompt": "a cat"}, sent) is False
    assert reading.matches({"text": "read this out"}, sent) is False
    for unclear in ({"prompt": "a fox"}, {"prompt": "a fox", "seed": None}, {}, None, "a fox"):
        assert reading.matches(unclear, sent) is None
    assert reading.matches({"prompt": "a fox"}, {}) is None
