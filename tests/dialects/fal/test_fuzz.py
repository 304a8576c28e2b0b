"""Whatever is sent, fal's shape comes back, and never a 5xx.

A few hundred drawn requests; `python -m tests.dialects.fal.test_fuzz 5000` draws thousands.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve.core.request import JSON
from fluxserve.dialects.fal.apps import FORMS, OWNER, SIZES
from fluxserve.dialects.fal.errors import OUTSIDE
from fluxserve.dialects.fal.uploads import FIELDS as UPLOAD_FIELDS
from tests.dialects.fuzzing import JUNK, PICTURES, Bench, bodies, value_of
from tests.dialects.refusing import FEW, refusing

Ask = tuple[str, str, dict[str, str], bytes]
APPS = [*(OWNER + name for name in FORMS), "fal-ai/simulator", "black-forest-labs/flux-dev"]
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "X-Fal-Request-Timeout": st.sampled_from(["30", "0", "-1", "x", "nan", "1e99"]),
        "X-Fal-Queue-Priority": st.sampled_from(["low", "x"]),
        "Idempotency-Key": st.sampled_from(["a", "b" * 300]),
        "X-Forwarded-Host": st.sampled_from(["other.example", "a b"]),
    },
)
QUERIES = st.sampled_from(
    ["", "", "?fal_webhook=", "?fal_webhook=http://a.example/h", "?fal_webhook=%00", "?logs=1&logs"]
)
SIDES = st.integers(-1, 5000) | JUNK


@st.composite
def inputs(draw: st.DrawFn, app: str) -> bytes:
    form = FORMS.get(app.removeprefix(OWNER))
    fields = [] if form is None else form.fields
    known: dict[str, st.SearchStrategy[JSON]] = {field.name: value_of(field) for field in fields}
    picture = PICTURES | st.fixed_dictionaries({"url": PICTURES}) | JUNK
    known |= {"image_url": picture, "mask_url": picture, "control_image_url": picture}
    known |= {"image_urls": st.lists(picture, max_size=5) | JUNK}
    sizes = st.sampled_from(sorted(SIZES)) | st.fixed_dictionaries({"width": SIDES})
    known |= {"image_size": sizes | st.fixed_dictionaries({"width": SIDES, "height": SIDES})}
    known.pop("prompt", None)
    said: dict[str, JSON] = {"prompt": draw(st.just("a fox") | JUNK)}
    names = [*(() if form is None else form.needs), *draw(st.lists(st.sampled_from([*known])))]
    said |= {name: draw(known[name]) for name in names if name in known}
    raw = json.dumps({**said, **draw(st.just({}) | st.fixed_dictionaries({"x": JUNK}))}).encode()
    return draw(st.sampled_from([raw, raw, raw, raw, raw[: len(raw) // 2]]))


@st.composite
def creates(draw: st.DrawFn) -> Ask:
    app = draw(st.sampled_from([*APPS, *APPS, "fal-ai/nothing", "x", ""]))
    body, headers, query = draw(inputs(app)), draw(HEADERS), draw(QUERIES)
    end = draw(st.sampled_from(["", "", "", "/stream", "/"]))
    way = draw(st.sampled_from(["queue", "queue", "run", "proxy"]))
    if way == "proxy":
        host = draw(st.sampled_from(["queue.fal.run", "fal.run", "a.example"]))
        target = f"https://{host}/{app}{end}{query}"
        return "POST", "/fal/proxy", {**headers, "x-fal-target-url": target}, body
    return "POST", f"/fal/{way}/{app}{end if way == 'run' else ''}{query}", headers, body


@st.composite
def others(draw: st.DrawFn) -> Ask:
    piece = draw(st.text("abcdef0123456789-_~", min_size=1, max_size=34))
    method = draw(st.sampled_from(["GET", "PUT", "POST", "DELETE"]))
    end = draw(
        st.sampled_from(["", "/status", "/status?logs=x", "/cancel", "/status/stream", "/x"])
    )
    body = draw(bodies(UPLOAD_FIELDS, ()))
    urls = ["http://[", "queue.fal.run", "https://rest.fal.ai/x", "https://rest.fal.ai/storage/"]
    urls += ["https://rest.fal.ai/storage/upload/initiate?a", "http://queue.x:y/a"]
    path = draw(
        st.sampled_from(
            [
                f"/fal/queue/fal-ai/flux/requests/{piece}{end}",
                f"/fal/storage/put/{piece}",
                "/fal/storage/upload/initiate",
                "/fal/proxy",
                f"/fal/{piece}",
                "/.well-known/jwks.json",
            ]
        )
    )
    return method, path, {"x-fal-target-url": draw(st.sampled_from(urls))}, body


def judge(method: str, path: str, answer: httpx.Response) -> None:
    """An error with a detail, or what a call answers when it goes well."""
    assert answer.status_code < 500, answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
        assert set(json.loads(lines[-1][5:])) >= {"error", "detail"}
        return
    if method == "OPTIONS":
        return
    body = answer.json()
    if path.endswith("/cancel") and "status" in body:
        assert body == {"status": "NOT_FOUND"}
    elif answer.status_code >= 400:
        assert answer.status_code in (400, 401, 403, 404, 405, 413, 422, 429), answer.text
        assert isinstance(body["message"], str)
        details = body["detail"]
        assert isinstance(details, str | list)
        for one in details if isinstance(details, list) else ():
            assert set(one) == {"loc", "msg", "type"}
            assert one["loc"][0] == OUTSIDE.get(one["loc"][-1], "body")
    elif "request_id" in body:
        assert body["status"] == "IN_QUEUE"
    else:
        assert set(body) in ({"upload_url", "file_url"}, {"keys"}), body


def fuzz(bench: Bench, examples: int) -> Counter[str]:
    codes: Counter[str] = Counter()

    @settings(FEW, max_examples=examples)
    @given(st.one_of(creates(), creates(), creates(), others()))
    def one(ask: Ask) -> None:
        method, path, headers, body = ask
        answer = bench.ask(method, path, headers=headers, content=body)
        judge(method, path, answer)
        codes[str(answer.status_code)] += 1

    one()
    return codes


def test_no_request_gets_a_5xx_or_an_answer_of_another_shape(tmp_path: Path) -> None:
    with refusing(tmp_path) as bench:
        codes = fuzz(bench, 300)
    assert codes["200"] > 5, codes
    assert codes["422"] > 20, codes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, refusing(Path(folder)) as whole:
        count = fuzz(whole, int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
        sys.stdout.write(json.dumps({"cases": count.total(), "codes": count}) + "\n")
