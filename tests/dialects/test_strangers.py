"""A server that needs no key is not to be had by web pages of other origins."""

from pathlib import Path

import pytest

from fluxserve.dialects.strangers import strange_host
from tests.dialects.served import client_of, house_on

KEYS = "/fluxserve/v1/keys"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.com"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://flux.test"}, 201),
        ({"origin": "https://app.example"}, 201),
        ({}, 201),
    ],
)
async def test_only_our_own_pages_and_those_of_cors_may_act(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    flags = {"cors": ["https://app.example"]}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        answer = await client.post(KEYS, content=b"{}", headers=headers)
        assert answer.status_code == status
        assert (await client.get(KEYS)).status_code == (401 if status == 201 else 200)


@pytest.mark.parametrize(
    ("host", "is_strange"),
    [
        ("127.0.0.1:8000", False),
        ("[::1]:8000", False),
        ("localhost:3000", False),
        ("images", False),
        ("box.local", False),
        ("", False),
        ("flux.shop.com", False),
        ("evil.com", True),
        ("127.0.0.1.evil.com:8000", True),
        ("[evil", True),
    ],
)
def test_strange_is_what_a_stranger_could_register(host: str, is_strange: bool) -> None:
    assert strange_host(host, "https://flux.shop.com/") is is_strange


async def test_pages_of_any_origin_may_read_signed_links_where_others_may_not_call(
    tmp_path: Path,
) -> None:
    asking = {"Origin": "https://other.example", "Access-Control-Request-Method": "GET"}
    flags = {"cors": ["https://app.example"]}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        for path in ("/out/token/a.png", "/fal/storage/put/token"):
            answer = await client.options(path, headers=asking)
            assert answer.status_code == 204
            assert answer.headers["access-control-allow-origin"] == "*"
        assert (await client.options("/v1/predictions", headers=asking)).status_code == 400
        mine = {**asking, "Origin": "https://app.example"}
        answer = await client.options("/v1/predictions", headers=mine)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
