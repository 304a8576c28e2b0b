"""What does one waiting client cost? Memory per `Prefer: wait` call and per event stream.

    python -m bench.waiting [--clients 2000]

A real server process with the simulator told to hold everything; raw sockets as clients. Resident
memory of the server is read before and after, with as many clients of each kind; then all hang up.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from urllib.parse import urlsplit

import psutil

TARGET_KB = 40.0
BODY = json.dumps({"input": {"prompt": "a fox"}}).encode()
CREATE = b"/v1/models/black-forest-labs/flux-dev/predictions"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def start(folder: str) -> tuple[subprocess.Popen[str], str]:
    """A server that holds everything, and its address."""
    env = {
        **os.environ,
        "FLUXSERVE_SIMULATOR__ENABLED": "true",
        "FLUXSERVE_SIMULATOR__OUTCOME": "hold",
        "FLUXSERVE_LIMITS__QUEUE_MAX": "0",
    }
    command = [sys.executable, "-m", "fluxserve", "serve", "--port", "0", "--data-dir", folder]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    return process, line.rpartition(" ")[2].strip()


async def ask(url: str, head: bytes, body: bytes = b"") -> Connection:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(head + b"Host: bench\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    return reader, writer


async def waiters(url: str, count: int) -> list[Connection]:
    """`count` creates that wait for a picture that does not come."""
    head = b"POST " + CREATE + b" HTTP/1.1\r\nPrefer: wait=60\r\n"
    return list(await asyncio.gather(*(ask(url, head, BODY) for _ in range(count))))


async def streams(url: str, count: int) -> list[Connection]:
    """`count` event streams of one prediction."""
    reader, writer = await ask(url, b"POST " + CREATE + b" HTTP/1.1\r\n", BODY)
    answer = await reader.readuntil(b"\r\n\r\n")
    size = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    stream = json.loads(await reader.readexactly(size))["urls"]["stream"]
    writer.close()
    head = b"GET " + urlsplit(stream).path.encode() + b" HTTP/1.1\r\n"
    opened = await asyncio.gather(*(ask(url, head) for _ in range(count)))
    for reader, _ in opened:
        await reader.readuntil(b"\r\n\r\n")
    return list(opened)


async def settled(server: psutil.Process) -> float:
    """Resident kB once they stop growing."""
    last = -1.0
    while True:
        await asyncio.sleep(2.0)
        now = server.memory_info().rss / 1024
        if abs(now - last) < 256:
            return float(now)
        last = now


async def measure(url: str, pid: int, count: int) -> dict[str, float]:
    server = psutil.Process(pid)
    found: dict[str, float] = {}
    for name, open_all in (("prefer_wait", waiters), ("stream", streams)):
        hang_up(await open_all(url, 20))  # what the first client alone brings in
        before = await settled(server)
        connections = await open_all(url, count)
        after = await settled(server)
        found[f"{name}_kb"] = round((after - before) / count, 1)
        hang_up(connections)
        await settled(server)
    return found


def hang_up(connections: Sequence[Connection]) -> None:
    for _, writer in connections:
        writer.transport.abort()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clients", type=int, default=2000)
    clients = options.parse_args().clients
    resource.setrlimit(resource.RLIMIT_NOFILE, (clients * 2 + 500,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(folder)
        try:
            found = asyncio.run(measure(url, process.pid, clients))
        finally:
            process.kill()
            process.wait()
    print(f"{clients} clients at once on one process, target {TARGET_KB:g} kB each")
    for name, kb in found.items():
        print(f"  {name:16} {kb:6.1f} kB")
    print(json.dumps({"bench": "waiting", "clients": clients, **found}))


if __name__ == "__main__":
    main()
