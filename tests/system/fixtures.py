"""One PostgreSQL and one S3 for all tests of a run, started by the first that asks."""

import os
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from tests.system import postgresql as postgres_server
from tests.system import programs
from tests.system import s3 as s3_server

# An empty database of an own server instead, e.g. postgresql://user@127.0.0.1:5432/test
URL = "FLUXSERVE_TEST_POSTGRESQL"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a database that tests may fill and empty."""
    given = os.environ.get(URL)
    if given:
        yield given
        return
    if programs.postgresql() is None:
        pytest.skip(f"PostgreSQL is not here: install it, or name a database in {URL}")
    with postgres_server.running() as url:
        yield url


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.S3]:
    """An emulator of S3 without buckets."""
    with s3_server.running() as emulator:
        yield emulator


@pytest.fixture
def bucket(s3: s3_server.S3, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Makes a bucket and says its URL; this process may use it."""
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)

    def make() -> str:
        name = f"bucket-{uuid4().hex}"
        s3.make_bucket(name)
        return f"s3://{name}"

    return make
