"""What every request meets before a dialect: routing, redirects, bodies that cannot be read."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.dialects.served import client_of, house_on

SUBMITS = {
    "native": ("/fluxserve/v1/predictions", '{"model": "flux-dev", "prompt": "x", "seed": %s}'),
    "replicate": (
        "/v1/models/black-forest-labs/flux-dev/predictions",
        '{"input": {"prompt": "x", "seed": %s}}',
    ),
    "bfl": ("/v1/flux-dev", '{"prompt": "x", "seed": %s}'),
    "gateway": ("/flux/v1/flux-dev", '{"prompt": "x", "seed": %s}'),
    "wavespeed": ("/api/v3/wavespeed-ai/flux-dev", '{"prompt": "x", "seed": %s}'),
    "openai": ("/openai/v1/images/generations", '{"prompt": "x", "model": "flux-dev", "n": %s}'),
    "fal": ("/fal/run/fal-ai/flux/dev", '{"prompt": "x", "seed": %s}'),
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with house_on(tmp_path) as house, client_of(house) as client:
        yield client


@pytest.mark.parametrize("name", SUBMITS)
async def test_a_number_beyond_all_floats_is_refused_in_words(
    client: httpx.AsyncClient, name: str
) -> None:
    path, body = SUBMITS[name]
    for number in ("1e999", "-1e999", "1" * 400 + ".5e10"):
        answer = await client.post(path, content=(body % number).encode())
        assert answer.status_code in (400, 422), answer.text
        assert "a number that is too large" in answer.text


@pytest.mark.parametrize("name", SUBMITS)
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid UTF-8 (byte 7)"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"a": "\\udc00 and more of it"}', "half a surrogate pair"),
        (b'{"a": 1,}', "line 1, column 9"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "must be a JSON object"),
        (b"", "not valid JSON (line 1, column 1)"),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused_in_words(
    client: httpx.AsyncClient, name: str, said: bytes, words: str
) -> None:
    answer = await client.post(SUBMITS[name][0], content=said)
    assert answer.status_code in (400, 422), answer.text
    assert words in answer.text


async def test_a_byte_order_mark_and_a_repeated_name_are_taken(client: httpx.AsyncClient) -> None:
    said = b'\xef\xbb\xbf{"model": "flux-pro", "prompt": "x", "model": "flux-dev"}'
    answer = await client.post("/fluxserve/v1/predictions", content=said)
    assert answer.status_code == 201, answer.text
    assert answer.json()["model"] == "black-forest-labs/flux-dev"


async def test_a_slash_too_many_or_too_few_is_redirected(client: httpx.AsyncClient) -> None:
    one = await client.get("/fluxserve/v1/keys/?a=b")
    assert one.status_code == 307
    assert one.headers["location"] == "http://flux.test/fluxserve/v1/keys?a=b"


async def test_behind_a_proxy_the_redirect_leads_where_the_caller_came_from(
    client: httpx.AsyncClient,
) -> None:
    told = {"x-forwarded-proto": "https", "x-forwarded-host": "img.internal:8443"}
    one = await client.get("/fluxserve/v1/keys/?a=b%20c", headers=told)
    assert one.headers["location"] == "https://img.internal:8443/fluxserve/v1/keys?a=b%20c"


async def test_a_proxys_word_for_a_host_that_is_none_is_not_believed(
    client: httpx.AsyncClient,
) -> None:
    told = {"x-forwarded-host": "["}
    body = {"version": "black-forest-labs/flux-pro", "input": {"prompt": "x"}}
    hook = {"webhook": "http://example.invalid/"}
    answer = await client.post("/v1/predictions", json={**body, **hook}, headers=told)
    assert answer.status_code == 201, answer.text


async def test_a_wrong_method_names_the_right_ones(client: httpx.AsyncClient) -> None:
    answer = await client.put("/fluxserve/v1/predictions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert (await client.get("/nowhere/at/all")).status_code == 404
