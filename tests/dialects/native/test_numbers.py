"""Numbers that are none, or too large for the store or a date, are refused and never a fault."""

from pathlib import Path

import pytest

from tests.dialects.served import client_of, house_on

ROOT = "/fluxserve/v1"
BODY = '{"model": "flux-dev", "prompt": "a fox"%s}'


async def test_waiting_for_nan_seconds_is_refused_and_does_not_stop_the_server(
    tmp_path: Path,
) -> None:
    slow = {"simulator": {"seconds": 60.0}}
    async with house_on(tmp_path, slow) as house, client_of(house) as client:
        made = (await client.post(f"{ROOT}/predictions", content=BODY % "")).json()
        answer = await client.get(f"{ROOT}/predictions/{made['id']}?wait=nan")
        assert answer.status_code == 422
        found = await house.predictions.wait(made["id"], float("nan"))
        assert not found.is_terminal
        await house.predictions.cancel(made["id"])


@pytest.mark.parametrize("path", ["predictions?limit=nan", "usage?end=0001-01-01T00:00:00Z"])
async def test_odd_queries_are_no_fault(tmp_path: Path, path: str) -> None:
    async with house_on(tmp_path) as house, client_of(house) as client:
        assert (await client.get(f"{ROOT}/{path}")).status_code < 500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("keys", '{"expires_s": 1e300}'),
        ("keys", '{"budget": 1e300}'),
        ("keys", '{"rate_per_minute": 99999999999999999999}'),
        ("prices", '{"per_image": 1e300}'),
        ("prices", '{"options": {"x": 1e300}}'),
        ("prices", '{"valid_from": "0001-01-01T00:00:00+23:59"}'),
        ("predictions", BODY % ', "deadline_s": 1e300'),
        ("predictions", BODY % ', "deadline_s": 1e999'),
        ("predictions", BODY % ', "priority": 99999999999999999999'),
    ],
)
async def test_numbers_that_nothing_can_hold_are_refused(
    tmp_path: Path, path: str, body: str
) -> None:
    async with house_on(tmp_path) as house, client_of(house) as client:
        answer = await client.post(f"{ROOT}/{path}", content=body)
        assert 400 <= answer.status_code < 500, answer.text
