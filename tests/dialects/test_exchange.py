"""The runner of exchange files: it must fail where a server does not answer as written."""

from pathlib import Path

import httpx
import pytest

from fluxserve.core.request import JSON
from tests.dialects.exchange import Value, match, parse, play

TALK = """\
# Two requests.

POST /v1/things?x=<colour>
X-Note: a note
{"name": "<name>", "n": "<count>"}

201
Location: http://test/v1/things/<id>
X-None: <absent>
{"id": "<id>", "url": "http://test/v1/things/<id>", "...": "..."}

# Comments stand between them.
GET /v1/things/<id>

200 within 2 s
{"id": "<id>", "state": "done", "list": [1, "..."]}
"""


def _transport(polls: int) -> httpx.MockTransport:
    left = [polls]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            assert request.url.query == b"x=red"
            assert request.content == b'{"name": "fox", "n": 3}'
            assert request.headers["x-note"] == "a note"
            body = {"id": "k1", "url": "http://test/v1/things/k1", "more": 1}
            return httpx.Response(201, json=body, headers={"Location": "http://test/v1/things/k1"})
        left[0] -= 1
        state = "done" if left[0] <= 0 else "busy"
        return httpx.Response(200, json={"id": "k1", "state": state, "list": [1, 2, 3]})

    return httpx.MockTransport(answer)


async def test_an_exchange_fills_in_what_it_remembers_and_polls(tmp_path: Path) -> None:
    path = tmp_path / "talk.http"
    path.write_text(TALK)
    async with httpx.AsyncClient(transport=_transport(3), base_url="http://test") as client:
        known = await play(path, client, {"colour": "red", "name": "fox", "count": 3})
    assert known["id"] == "k1"


async def test_another_answer_than_the_written_one_is_an_assertion(tmp_path: Path) -> None:
    path = tmp_path / "talk.http"
    path.write_text(TALK.replace("2 s", "0.05 s"))
    async with httpx.AsyncClient(transport=_transport(10**6), base_url="http://test") as client:
        with pytest.raises(AssertionError, match=r"talk\.http:13 GET .*\n.*state: 'done'"):
            await play(path, client, {"colour": "red", "name": "fox", "count": 3})


@pytest.mark.parametrize(
    ("pattern", "given", "words"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, "body.b: was not expected"),
        ({"a": 1, "...": "..."}, {"b": 2}, "body.a: is missing"),
        ({"a": 1}, {"a": True}, "a: 1 is expected, not True"),
        ({"a": ["<x>", "<x>"]}, {"a": ["p", "q"]}, "a[1]: '<x>' is not 'q'"),
        ([1], [1, 2], "body: 1 items are expected, not 2"),
        ({"a": None}, {"a": ""}, "a: None is expected, not ''"),
    ],
)
def test_a_body_that_differs_is_told_apart(pattern: JSON, given: JSON, words: str) -> None:
    known: dict[str, Value] = {}
    assert words in match(pattern, given, known)


def test_a_file_with_a_stray_line_is_refused_by_its_line() -> None:
    with pytest.raises(ValueError, match="line 2: a request is expected"):
        parse("\nhello\n")
