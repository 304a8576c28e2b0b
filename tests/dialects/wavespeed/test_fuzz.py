"""Whatever is sent, the envelope comes back, and never a 5xx."""

import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.dialects.wavespeed.files import TICKET_FIELDS
from fluxserve.dialects.wavespeed.forms import models
from fluxserve.dialects.wavespeed.predictions import DELETE_FIELDS, LIST_FIELDS
from tests.dialects.fuzzing import JUNK, Bench, bench, bodies

MODELS = models(Catalog(CARDS, lambda: 1))
MOUNTS = ("/api/v3", "/api/v2")
PICTURES = ("image", "images", "mask_image", "control_image", "loras")
QUERIES = st.sampled_from(
    [
        "",
        "?webhook=",
        "?webhook=http://a.example/h?x=1&y=2",
        "?webhook=%00",
        "?webhook=http://[",
        "?a",
    ]
)
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
def wavespeed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("wavespeed")) as wavespeed:
        yield wavespeed


@st.composite
def submits(draw: st.DrawFn) -> tuple[str, bytes]:
    model = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    path = f"{draw(st.sampled_from(MOUNTS))}/{model.id}{draw(QUERIES)}"
    return path, draw(bodies(model.form.fields, PICTURES))


@st.composite
def other_calls(draw: st.DrawFn) -> tuple[str, bytes]:
    path, fields = draw(
        st.sampled_from(
            [
                ("predictions", LIST_FIELDS),
                ("predictions/delete", DELETE_FIELDS),
                ("media/uploads", TICKET_FIELDS),
            ]
        )
    )
    return f"/api/v3/{path}", draw(bodies(fields, ()))


def judge(answer: httpx.Response) -> None:
    """An answer is an envelope whose code repeats the status."""
    body = answer.json()
    assert answer.status_code in (200, 400, 403, 404, 405, 409, 413), answer.text
    assert body["code"] == answer.status_code
    assert isinstance(body["message"], str)
    if answer.status_code == 200:
        assert body["message"] == "success"
        assert "data" in body
    else:
        assert body.get("data") is None
        assert isinstance(body["error_code"], str)


def submit(wavespeed: Bench, case: tuple[str, bytes]) -> None:
    path, body = case
    answer = wavespeed.ask("POST", path, content=body)
    judge(answer)
    if answer.status_code == 200:
        data = answer.json()["data"]
        assert data["status"] in ("created", "processing")
        assert data["outputs"] == []
        assert isinstance(data["error"], str)
        assert isinstance(data["code"], int)
        judge(wavespeed.ask("GET", data["urls"]["get"]))


@FEW
@given(case=submits())
def test_any_submit_is_answered_in_the_envelope(wavespeed: Bench, case: tuple[str, bytes]) -> None:
    submit(wavespeed, case)


@pytest.mark.slow
@MANY
@given(case=submits())
def test_any_of_many_submits_is_too(wavespeed: Bench, case: tuple[str, bytes]) -> None:
    submit(wavespeed, case)


@FEW
@given(case=other_calls(), id_=st.text(max_size=40), junk=JUNK)
def test_any_other_call_is_answered_in_the_envelope(
    wavespeed: Bench, case: tuple[str, bytes], id_: str, junk: object
) -> None:
    path, body = case
    judge(wavespeed.ask("POST", path, content=body))
    judge(wavespeed.ask("POST", "/api/v3/model/price", content=json.dumps({"model_id": junk})))
    judge(wavespeed.ask("POST", "/api/v3/billings/search", content=json.dumps(junk)))
    name = httpx.URL("/x", params={"x": id_.encode("utf-8", "replace")}).query.decode()[2:]
    judge(wavespeed.ask("PUT", f"/api/v3/media/uploads/put/t{name}", content=body))
    judge(wavespeed.ask("GET", f"/api/v3/predictions/t{name}/result"))
