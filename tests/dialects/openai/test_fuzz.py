"""Whatever is sent, an error object of OpenAI's comes back, and never a 5xx.

A few hundred drawn requests; `python -m tests.dialects.openai.test_fuzz 5000` draws thousands.
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
from fluxserve.core.schema import Kind
from fluxserve.dialects.openai.reading import FIELDS
from tests.dialects.fuzzing import JUNK, PICTURES, SIZES, Bench, value_of
from tests.dialects.refusing import FEW, refusing
from tests.dialects.served import png

FILES = st.sampled_from([png(64, 64), png(16, 16), png(64, 64, mode="RGBA"), b"hello", b""])
MODELS = st.sampled_from(["flux-dev", "flux-kontext-dev", "simulator", "dall-e-3", "", "x/y/z"])
NAMES = ("image", "images", "input_image", "input_image_2", "mask")
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Idempotency-Key": st.sampled_from(["a", "b" * 300]),
        "x-stainless-retry-count": st.sampled_from(["0", "1", "x"]),
        "x-stainless-read-timeout": st.sampled_from(["600", "0", "nan", "NOT_GIVEN"]),
        "X-Forwarded-Host": st.sampled_from(["evil.example", "a b"]),
    },
)
Ask = tuple[str, str, dict[str, str], bytes]


def objects() -> st.SearchStrategy[dict[str, JSON]]:
    picture = PICTURES | st.fixed_dictionaries({"image_url": PICTURES | JUNK}) | JUNK
    known: dict[str, st.SearchStrategy[JSON]] = {field.name: value_of(field) for field in FIELDS}
    known |= {name: picture | st.lists(picture, max_size=5) for name in NAMES}
    known |= {"size": SIZES | JUNK, "model": MODELS | JUNK, "n": st.integers(0, 11)}
    known.pop("prompt")
    prompt = st.just("a fox") | st.text(max_size=30) | JUNK
    return st.fixed_dictionaries({"prompt": prompt}, optional={**known, "user": JUNK})


@st.composite
def forms(draw: st.DrawFn) -> tuple[str, bytes]:
    """A multipart body, some of them broken."""
    parts: list[bytes] = []
    plain = [field.name for field in FIELDS if field.kind is not Kind.ARRAY]
    body = draw(objects())
    for name, value in body.items():
        if name in plain:
            text = value if isinstance(value, str) else json.dumps(value)
            text = text.replace("[[", "[ [")  # no directive for the simulator
            head = f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'
            parts.append(head.encode("utf-8", "replace"))
    file_names = ["image", "image[]", "image[0]", "images", "mask", "prompt", "x", "loras[0][path]"]
    for name in draw(st.lists(st.sampled_from(file_names), max_size=4)):
        head = f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
        head += f"Content-Type: {draw(st.sampled_from(['image/png', 'x']))}\r\n\r\n"
        parts.append(head.encode() + draw(FILES))
    loras = ["loras[0][path]", "loras[][scale]", "loras[7][path]", "loras"]
    for name in draw(st.lists(st.sampled_from(loras), max_size=2)):
        value = draw(st.sampled_from(["fox", "1.5", "[", "[1]", '[{"path": "a"}]']))
        parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
    raw = b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts)
    raw += draw(st.sampled_from([b"--XX--\r\n", b"--XX--\r\n", b"", b"--XX", b"\r\n--"]))
    kind = "multipart/form-data; boundary=XX"
    odd = ["multipart/form-data", "multipart/form-data; boundary=", "x"]
    return draw(st.sampled_from([kind, kind, kind, *odd])), raw


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    path = draw(st.sampled_from(["generations", "edits", "edits", "variations"]))
    mount = draw(st.sampled_from(["/v1/images", "/openai/v1/images"]))
    headers = draw(HEADERS)
    if draw(st.booleans()):
        headers["Content-Type"], body = draw(forms())
    else:
        body = json.dumps(draw(objects())).encode()
        body = draw(st.sampled_from([body, body, body, body, body[: len(body) // 2]]))
    return "POST", f"{mount}/{path}", headers, body


@st.composite
def others(draw: st.DrawFn) -> Ask:
    piece = draw(st.text("abcdef0123456789-_~", min_size=1, max_size=20))
    path = draw(st.sampled_from(["/openai/v1/models", "/openai/v1", "/v1/images"]))
    return draw(st.sampled_from(["GET", "PUT", "DELETE"])), f"{path}/{piece}", {}, b""


def judge(answer: httpx.Response) -> None:
    """An error object, or a stream that ends in one."""
    assert answer.status_code < 500, answer.text
    assert answer.headers["x-request-id"]
    if answer.headers["content-type"].startswith("text/event-stream"):
        line = next(line for line in answer.text.splitlines() if line.startswith("data:"))
        body = json.loads(line[5:])
    else:
        assert answer.status_code in (400, 403, 404, 405, 409, 413, 429), answer.text
        body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["type"]


def fuzz(bench: Bench, examples: int) -> Counter[str]:
    codes: Counter[str] = Counter()

    @settings(FEW, max_examples=examples)
    @given(st.one_of(asks(), asks(), asks(), asks(), others()))
    def one(ask: Ask) -> None:
        method, path, headers, body = ask
        answer = bench.ask(method, path, headers=headers, content=body)
        judge(answer)
        found = answer.json() if "json" in answer.headers["content-type"] else {"error": {}}
        codes[f"{answer.status_code} {found['error'].get('code')}"] += 1

    one()
    return codes


def test_no_request_gets_a_5xx_or_an_answer_of_another_shape(tmp_path: Path) -> None:
    with refusing(tmp_path) as bench:
        codes = fuzz(bench, 300)
    assert codes["400 moderation_blocked"] > 5, codes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, refusing(Path(folder)) as whole:
        count = fuzz(whole, int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
        sys.stdout.write(json.dumps({"cases": count.total(), "codes": count}) + "\n")
