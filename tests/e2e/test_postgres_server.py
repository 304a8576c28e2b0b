"""Real servers on one PostgreSQL: shared predictions, shared secrets, a lost server's work."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.clients.replicate.receiver import Receiver, receiving
from tests.server import ServerProcess
from tests.system.s3 import S3

API = "/fluxserve/v1/predictions"
BODY = {"model": "flux-kontext-dev", "prompt": "a fox", "size": "256x256"}
SCHEMA = "fluxserve_e2e"
# A run that no test sees the end of, and a stop that does not wait for it.
SLOW = {"FLUXSERVE_SIMULATOR__SECONDS": "600", "FLUXSERVE_DISPATCH__DRAIN_S": "0.1"}
Start = Callable[..., ServerProcess]


@pytest.fixture
def database(postgresql: str) -> Iterator[str]:
    """An empty database."""

    async def execute(sql: str) -> None:
        connection = await asyncpg.connect(postgresql)
        await connection.execute(sql)
        await connection.close()

    asyncio.run(execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}"))
    yield f"{postgresql}?search_path={SCHEMA}"
    asyncio.run(execute(f"DROP SCHEMA {SCHEMA} CASCADE"))


@pytest.fixture
def start(start_server: Start, database: str, tmp_path: Path) -> Start:
    """Starts a server by name: a data directory each, one database, one folder of files."""

    def begin(name: str, **environ: str) -> ServerProcess:
        shared = {
            "FLUXSERVE_DATABASE__URL": database,
            "FLUXSERVE_FILES__URL": (tmp_path / "files").as_uri(),
            "FLUXSERVE_FETCH__ALLOW": "127.0.0.0/8",
            "FLUXSERVE_DISPATCH__LEASE_S": "1.5",
            "FLUXSERVE_DISPATCH__HEARTBEAT_S": "0.5",
        }
        return start_server(data_dir=tmp_path / name, **{**shared, **environ})

    return begin


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as opened:
        yield opened


def create(server: ServerProcess, **more: str) -> str:
    answer = httpx.post(server.url + API, json={**BODY, **more}, timeout=30)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def read(server: ServerProcess, id_: str, wait: float = 0) -> dict[str, object]:
    answer = httpx.get(f"{server.url}{API}/{id_}", params={"wait": wait}, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def wait_until_running(server: ServerProcess, id_: str) -> None:
    with httpx.stream("GET", f"{server.url}{API}/{id_}/events", timeout=30) as events:
        for line in events.iter_lines():
            if line.startswith("event:") and "started" in line:
                return
    raise AssertionError("it never started")


def picture(server: ServerProcess, url: object) -> httpx.Response:
    """What another server's link gives when this one is asked for it."""
    link = httpx.URL(str(url))
    return httpx.get(f"{server.url}{link.raw_path.decode()}")


def test_a_server_keeps_its_predictions_in_postgresql(start: Start, receiver: Receiver) -> None:
    server = start("one")
    id_ = create(server, webhook=receiver.url)
    done = read(server, id_, wait=20)
    assert done["status"] == "succeeded"
    assert f'"id":"{id_}"' in receiver.take()[1].replace(" ", "")
    assert server.stop() == 0
    slow = start("one", **SLOW)
    assert read(slow, id_)["outputs"] is not None
    held = create(slow)
    wait_until_running(slow, held)
    canceled = httpx.post(f"{slow.url}{API}/{held}/cancel")
    assert canceled.json()["status"] == "canceled"
    listed = httpx.get(slow.url + API).json()
    assert {row["id"] for row in listed["results"]} == {id_, held}


def test_a_message_that_could_not_be_delivered_goes_out_after_a_restart(
    start: Start, receiver: Receiver
) -> None:
    server = start("one", **SLOW)
    id_ = create(server, webhook=receiver.url)
    wait_until_running(server, id_)
    server.kill()
    start("one")
    assert id_ in receiver.take()[1]


def test_servers_share_the_work_and_a_cancel_reaches_the_one_that_runs_it(start: Start) -> None:
    one = start("one", **SLOW, FLUXSERVE_SIMULATOR__CONCURRENCY="1")
    held = create(one)
    wait_until_running(one, held)
    waiting = [create(one) for _ in range(3)]
    two = start("two")
    for id_ in waiting:
        assert read(two, id_, wait=20)["status"] == "succeeded"
        assert read(one, id_)["status"] == "succeeded"
    assert read(two, held)["status"] == "running"
    httpx.post(f"{two.url}{API}/{held}/cancel")
    assert read(one, held)["status"] == "canceled"
    two.stop()
    wait_until_running(one, create(one))  # it has room again


def test_links_and_secrets_of_one_server_are_good_at_the_other(start: Start) -> None:
    one, two = start("one"), start("two")
    done = read(one, create(one), wait=20)
    outputs = done["outputs"]
    assert isinstance(outputs, list)
    answer = picture(two, outputs[0]["url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    secrets = [
        httpx.get(f"{server.url}/v1/webhooks/default/secret").json()["key"] for server in (one, two)
    ]
    assert secrets[0] == secrets[1]


def test_a_key_made_at_one_server_closes_and_opens_the_other(start: Start, tmp_path: Path) -> None:
    one, two = start("one"), start("two")
    token = (tmp_path / "one" / "admin.token").read_text().strip()
    asked = httpx.post(
        f"{one.url}/fluxserve/v1/keys",
        json={"name": "shared"},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert asked.is_success, asked.text
    headers = {"Authorization": f"Bearer {asked.json()['secret']}"}
    assert httpx.get(two.url + API, headers=headers).status_code == 200
    keys = f"{two.url}/fluxserve/v1/keys"
    assert httpx.get(keys, headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_the_work_of_a_killed_server_is_finished_by_the_other(start: Start) -> None:
    one = start("one", **SLOW)
    ids = [create(one) for _ in range(5)]
    for id_ in ids:
        wait_until_running(one, id_)
    two = start("two")
    assert read(two, ids[0])["status"] == "running"
    one.kill()
    for id_ in ids:
        done = read(two, id_, wait=30)
        assert (done["status"], done["attempt"]) == ("succeeded", 2)


def test_servers_share_files_in_s3(start: Start, s3: S3) -> None:
    s3.make_bucket("shared-files")
    files = {"FLUXSERVE_FILES__URL": "s3://shared-files/house", **s3.environ}
    one, two = start("one", **files), start("two", **files)
    done = read(one, create(one), wait=20)
    outputs = done["outputs"]
    assert isinstance(outputs, list)
    answer = picture(two, outputs[0]["url"])
    assert answer.status_code == 200
    assert answer.content == picture(one, outputs[0]["url"]).content
    assert len(answer.content) == outputs[0]["size_bytes"]
