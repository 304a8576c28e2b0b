"""What does one HTTP request cost: a prediction accepted durably, and one looked at?

One server process on a simulator that holds everything, against a bare ASGI handler under the same
uvicorn settings that parses the same body and answers as many bytes (the floor). Rounds of all
kinds are interleaved in one run; CPU is the server process's own. Targets: a POST with its durable
insert at most 3 times the floor, a GET at most 2 times; ready within 2 s; under 120 MB resident;
no torch in the process. "floor + insert" is the floor with the plainest durable insert: one row
of id and body, all rows that wait in one commit by a thread, as the server does it.

    python -m bench.http [--rounds 7] [--requests 1500] [--connections 32]
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
READY = "fluxserve ready on "
NATIVE = "/fluxserve/v1/predictions"
KEPT = "/kept"  # of the floor: with a durable insert
REPLICATE = "/v1/models/black-forest-labs/flux-dev/predictions"
WISH = {"prompt": "a fox in the snow", "num_inference_steps": 28, "guidance": 2.5, "seed": 7}
BODIES = {
    NATIVE: {
        "model": "flux-dev",
        "prompt": "a fox in the snow",
        "num_steps": 28,
        "seed": 7,
    },
    REPLICATE: {"input": WISH},
}
QUIET = {
    "FLUXSERVE_SIMULATOR__ENABLED": "true",
    "FLUXSERVE_SIMULATOR__OUTCOME": "hold",
    "FLUXSERVE_SIMULATOR__CONCURRENCY": "1",  # everything but the first one waits
    "FLUXSERVE_LIMITS__QUEUE_MAX": "0",
    "FLUXSERVE_BFL__POLL_HOLD_S": "0",  # an early poll is answered at once
}


@dataclass
class Row:
    """The rounds of one kind of request."""

    name: str
    floor: str  # the row it is measured against
    target: float | None
    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        return statistics.median(self.cpu_us)


class Server:
    """A process that says where it listens."""

    def __init__(self, words: list[str], environ: dict[str, str]) -> None:
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environ},
        )
        assert self.process.stdout
        line = next((line for line in self.process.stdout if line.startswith(READY)), "")
        assert line, "the server did not start"
        self.ready_s = time.monotonic() - began
        self.port = int(line.rpartition(":")[2])
        self.ps = psutil.Process(self.process.pid)

    @property
    def cpu_s(self) -> float:
        used = self.ps.cpu_times()
        return float(used.user + used.system)

    @property
    def resident_mb(self) -> float:
        return float(self.ps.memory_info().rss / 1e6)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()


def serve_floor(answer_bytes: int) -> None:
    """The floor: read the body, parse it, answer JSON of the same length; nothing else."""
    import socket

    import uvicorn
    import uvloop

    filler = "x" * max(0, answer_bytes - 40)
    insert = _store()

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message.get("more_body"):
                break
        said = json.loads(body) if body else {}
        if scope["path"] == KEPT:
            await insert(body)
        text = json.dumps({"id": len(said), "filler": filler}).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": text})

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"{READY}http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", proxy_headers=False
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


def _store() -> Callable[[bytes], Awaitable[None]]:
    """The plainest durable insert: a row in a file; whatever waits meanwhile shares a commit."""
    import queue
    import sqlite3
    import threading

    folder = tempfile.TemporaryDirectory()
    store = sqlite3.connect(
        Path(folder.name) / "floor.db", isolation_level=None, check_same_thread=False
    )
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = FULL")
    store.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, body TEXT)")
    waiting: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()

    def write(_folder: object = folder) -> None:
        while True:
            group = [waiting.get()]
            while not waiting.empty():
                group.append(waiting.get())
            store.execute("BEGIN")
            for body, _ in group:
                store.execute("INSERT INTO job (body) VALUES (?)", (body.decode(),))
            store.execute("COMMIT")
            done = [future for _, future in group]
            done[0].get_loop().call_soon_threadsafe(tell, done)

    def tell(done: list[asyncio.Future[None]]) -> None:
        for future in done:
            future.set_result(None)

    async def insert(body: bytes) -> None:
        future = asyncio.get_running_loop().create_future()
        waiting.put((body, future))
        await future

    threading.Thread(target=write, daemon=True).start()
    return insert


def request(method: str, path: str, body: object = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes
) -> bytes:
    """One request on an open connection; the body of its answer."""
    writer.write(said)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head[9:10] == b"2", head[:200]
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)


async def load(port: int, said: bytes, requests: int, connections: int) -> float:
    """Seconds for `requests` over `connections` that each wait for their answer."""
    left = requests

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await exchange(reader, writer, said)
        writer.close()

    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    began = time.monotonic()
    await asyncio.gather(*(one(*pair) for pair in pairs))
    return time.monotonic() - began


async def measure(options: argparse.Namespace, folder: str) -> dict[str, object]:
    words = ["-m", "fluxserve", "serve", "--port", "0", "--data-dir", folder]
    ours = Server(words, QUIET)
    try:
        before_mb = ours.resident_mb
        has_torch = any("torch" in file.path for file in ours.ps.memory_maps())
        reader, writer = await asyncio.open_connection("127.0.0.1", ours.port)
        made = await exchange(reader, writer, request("POST", NATIVE, BODIES[NATIVE]))
        writer.close()
        id_ = json.loads(made)["id"]
        floor = Server(["-m", "bench.http", "--floor", str(len(made))], {})
        try:
            rows = await rounds(options, ours, floor, id_)
        finally:
            floor.stop()
        return {
            "ready_s": round(ours.ready_s, 2),
            "resident_mb": round(before_mb, 1),
            "resident_after_mb": round(ours.resident_mb, 1),
            "torch_in_process": has_torch,
            "load": os.getloadavg()[0],
            "rows": rows,
        }
    finally:
        ours.stop()


async def rounds(
    options: argparse.Namespace, ours: Server, floor: Server, id_: str
) -> Iterable[Row]:
    post, get = "floor POST", "floor GET"
    kinds = (
        (Row(post, post, None), floor, request("POST", "/", BODIES[NATIVE])),
        (Row("floor + insert", post, None), floor, request("POST", KEPT, BODIES[NATIVE])),
        (Row("native POST", post, 3.0), ours, request("POST", NATIVE, BODIES[NATIVE])),
        (Row("Replicate POST", post, 3.0), ours, request("POST", REPLICATE, BODIES[REPLICATE])),
        (Row(get, get, None), floor, request("GET", "/")),
        (Row("native GET", get, 2.0), ours, request("GET", f"{NATIVE}/{id_}")),
        (Row("Replicate GET", get, 2.0), ours, request("GET", f"/v1/predictions/{id_}")),
        (Row("BFL poll", get, 2.0), ours, request("GET", f"/v1/get_result?id={id_}")),
        (Row("WaveSpeed poll", get, 2.0), ours, request("GET", f"/api/v3/predictions/{id_}")),
    )
    for round_ in range(options.rounds + 1):  # the first one warms up
        for row, server, said in kinds:
            cpu = server.cpu_s
            took = await load(server.port, said, options.requests, options.connections)
            if round_:
                row.per_s.append(options.requests / took)
                row.cpu_us.append((server.cpu_s - cpu) / options.requests * 1e6)
    return [row for row, _, _ in kinds]


def show(found: dict[str, object], rows: Iterable[Row]) -> None:
    by_name = {row.name: row for row in rows}
    print(f"{'':16}{'per s':>8}  {'CPU us, median (least-most)':30}{'x floor':>8}  target")
    for row in by_name.values():
        span = f"{row.cost:6.0f} ({min(row.cpu_us):.0f}-{max(row.cpu_us):.0f})"
        times = row.cost / by_name[row.floor].cost
        target = "" if row.target is None else f"{row.target:g}"
        print(f"{row.name:16}{statistics.median(row.per_s):8.0f}  {span:30}{times:8.1f}  {target}")
    print(
        f"ready after {found['ready_s']} s (2), {found['resident_mb']} MB resident at the start and"
        f" {found['resident_after_mb']} after (120), torch: {found['torch_in_process']};"
        f" load {found['load']:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--floor", type=int, help="serve the floor with answers of so many bytes")
    options = parser.parse_args()
    if options.floor is not None:
        serve_floor(options.floor)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(options, folder))
    rows = found.pop("rows")
    assert isinstance(rows, list)
    show(found, rows)
    print(json.dumps({**found, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
