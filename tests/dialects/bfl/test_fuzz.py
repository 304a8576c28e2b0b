"""Whatever is sent, BFL's shape comes back, and never a 5xx."""

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.dialects.bfl.api import names
from fluxserve.dialects.bfl.forms import NUMBERED, form_of
from tests.dialects.fuzzing import Bench, bench, bodies

SIX = {"Pending", "Ready", "Error", "Request Moderated", "Content Moderated", "Task not found"}
NAMES = names(Catalog(CARDS, lambda: 1))
EXTRA = ("image", "mask", "image_prompt", *NUMBERED[:5])
MOUNTS = ("/v1", "/flux/v1", "/bfl/v1")
QUERIES = st.sampled_from(["", "0", "-1", "nan", "inf", "0.001", "x", "1e999", "\x00"])
FEW = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)
MANY = settings(FEW, max_examples=5000)


@pytest.fixture(scope="module")
def bfl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("bfl")) as bfl:
        yield bfl


@st.composite
def submits(draw: st.DrawFn) -> tuple[str, str, bytes]:
    name = draw(st.sampled_from(NAMES))
    form = form_of(name)
    return draw(st.sampled_from(MOUNTS)), name, draw(bodies(form.fields, EXTRA))


def judge(answer: httpx.Response, mount: str) -> None:
    """An answer is a success in its shape, or an error that every client can read."""
    body = answer.json()
    assert answer.status_code in (200, 404, 409, 413, 422), answer.text
    assert isinstance(body, dict)
    if answer.status_code == 200:
        return
    assert isinstance(body["message"], str)
    if answer.status_code == 422:
        assert body["detail"]
        for item in body["detail"]:
            assert item["loc"][0] in ("body", "query")
            assert isinstance(item["msg"], str)
            assert isinstance(item["type"], str)
    else:
        assert isinstance(body["detail"], str)
    if mount == "/flux/v1":
        assert body["error"]["type"] == str(answer.status_code)


def submit(bfl: Bench, case: tuple[str, str, bytes]) -> None:
    mount, name, body = case
    answer = bfl.ask("POST", f"{mount}/{name}", content=body)
    judge(answer, mount)
    if answer.status_code == 200:
        task = answer.json()
        assert task["polling_url"] == f"http://flux.test{mount}/get_result?id={task['id']}"
        poll = bfl.ask("GET", task["polling_url"])
        assert (poll.status_code, poll.json()["status"]) == (200, "Pending")


@FEW
@given(case=submits())
def test_any_submit_is_answered_in_bfls_shape(bfl: Bench, case: tuple[str, str, bytes]) -> None:
    submit(bfl, case)


@pytest.mark.slow
@MANY
@given(case=submits())
def test_any_of_many_submits_is_too(bfl: Bench, case: tuple[str, str, bytes]) -> None:
    submit(bfl, case)


@FEW
@given(mount=st.sampled_from(MOUNTS), id_=st.text(max_size=40), wait=QUERIES, limit=QUERIES)
def test_any_other_call_is_answered_in_bfls_shape(
    bfl: Bench, mount: str, id_: str, wait: str, limit: str
) -> None:
    query = {"id": id_.encode("utf-8", "replace"), "wait": wait}
    poll = bfl.ask("GET", f"{mount}/get_result", params=query)
    assert poll.status_code in (404, 422)
    if poll.status_code == 404:
        assert poll.json()["status"] in SIX
    judge(bfl.ask("GET", f"{mount}/tasks", params={"limit": limit, "after": wait}), mount)
    judge(bfl.ask("POST", f"{mount}/cancel", params={"id": wait}), mount)
    judge(bfl.ask("POST", f"{mount}/licenses/models/x/usage", content=limit), mount)
