"""An S3 for the tests: moto's server in a process of its own, on a free loopback port."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

START_S = 60.0
# Says its port on the first line, serves until its standard input ends: with us, however we go.
PROGRAM = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@dataclass(frozen=True, slots=True)
class S3:
    """Where it is, and what a process must find in its environment to use it."""

    endpoint: str

    @property
    def environ(self) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        httpx.put(f"{self.endpoint}/{name}", timeout=START_S).raise_for_status()


@contextmanager
def running() -> Iterator[S3]:
    """A server without buckets, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    guard = threading.Timer(START_S, process.kill)
    guard.start()
    try:
        port = process.stdout.readline().strip()
        guard.cancel()
        if not port:
            raise RuntimeError("moto's server does not start")
        yield S3(f"http://127.0.0.1:{port}")
    finally:
        guard.cancel()
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
