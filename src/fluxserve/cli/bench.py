"""`fluxserve bench`: how fast this machine makes pictures, measured in a minute."""

import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from fluxserve.cli.client import Client, connected
from fluxserve.cli.pictures import EMBEDDED, Config, Key, Model, Server
from fluxserve.core.errors import FluxserveError

PROMPT = "a red apple on a blue background"
INSTRUCTION = "make it grayscale"
BUSY = 0.5  # load per core from which other programs disturb the measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Times of pictures made alike, in seconds."""

    pictures: int
    seconds_each: float  # median from request to picture, as a client sees it
    seconds_least: float
    seconds_most: float
    pictures_per_s: float  # over all of them
    steps_per_s: float  # denoising steps of one picture over its own denoising time, median


def add_to(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    count: Annotated[int, typer.Option(min=1, help="pictures made one after the other")] = 5,
    together: Annotated[int, typer.Option(min=1, help="pictures asked for at once")] = 4,
    model: Model = EMBEDDED,
    server: Server = None,
    key: Key = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure seconds per picture and steps per second here, after a first picture to warm up."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    began = time.monotonic()
    with connected(server, key, config=config) as client:
        ready_s = time.monotonic() - began
        first, first_s = _one(client, model, 0)
        alone, alone_s = _run(client, model, count, at_once=1)
        batch, batch_s = _run(client, model, together, at_once=together)
        edits, edits_s = _run(client, model, count, at_once=1, image=first["outputs"][0]["url"])
    found = {
        "one at a time": _measured(alone, alone_s),
        f"{together} at once": _measured(batch, batch_s),
        "edits": _measured(edits, edits_s),
    }
    request = first["request"]
    about = {
        "served_by": first["served_by"] or first["engine"],
        "size": f"{request['width']}x{request['height']}",
        "steps": request["num_steps"],
        "cores": os.cpu_count(),
        "load_per_core_before": round(load, 2),
        "ready_s": round(ready_s, 2),
        "first_picture_s": round(first_s, 2),
    }
    if as_json:
        runs = {name: asdict(one) for name, one in found.items()}
        typer.echo(json.dumps({**about, "runs": runs}))
        return
    _show(about, found)


def _show(about: dict[str, Any], found: dict[str, Measured]) -> None:
    typer.echo(f"{about['served_by']}, {about['size']} px, {about['steps']} steps")
    typer.echo(f"ready after {about['ready_s']} s, first picture {about['first_picture_s']} s\n")
    typer.echo(f"{'':16} {'s/picture':>10} {'least..most':>14} {'pictures/s':>11} {'steps/s':>9}")
    for name, one in found.items():
        span = f"{one.seconds_least:.2f}..{one.seconds_most:.2f}"
        typer.echo(
            f"{name:16} {one.seconds_each:10.2f} {span:>14} {one.pictures_per_s:11.2f}"
            f" {one.steps_per_s:9.1f}"
        )
    if about["load_per_core_before"] > BUSY:
        load = about["load_per_core_before"]
        text = f"the machine was busy before this began (load {load} per core): it can do better"
        typer.secho(f"\n{text}", err=True, fg="yellow")


def _run(
    client: Client, model: str, count: int, *, at_once: int, image: str | None = None
) -> tuple[list[tuple[dict[str, Any], float]], float]:
    """Pictures with the time each took, and the time of all."""
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        made = list(pool.map(lambda seed: _one(client, model, seed, image), range(1, count + 1)))
    return made, time.monotonic() - began


def _one(
    client: Client, model: str, seed: int, image: str | None = None
) -> tuple[dict[str, Any], float]:
    """One picture, and the seconds from the request to its end."""
    wish: dict[str, Any] = {"model": model, "seed": seed, "preview_steps": 0}
    wish |= {"prompt": INSTRUCTION, "images": [image]} if image else {"prompt": PROMPT}
    began = time.monotonic()
    done = client.call("POST", "/predictions", wish)
    while not done["finished_at"]:
        done = client.call("GET", f"/predictions/{done['id']}?wait=30")
    if done["status"] != "succeeded":
        raise FluxserveError(f"no picture: {(done['error'] or {}).get('message', done['status'])}")
    return done, time.monotonic() - began


def _measured(made: Sequence[tuple[dict[str, Any], float]], seconds: float) -> Measured:
    times = [took for _, took in made]
    return Measured(
        pictures=len(made),
        seconds_each=round(statistics.median(times), 4),
        seconds_least=round(min(times), 4),
        seconds_most=round(max(times), 4),
        pictures_per_s=round(len(made) / seconds, 4),
        steps_per_s=round(statistics.median(_steps_per_s(done) for done, _ in made), 2),
    )


def _steps_per_s(done: dict[str, Any]) -> float:
    metrics = done["metrics"]
    took = metrics.get("denoise_s") or metrics.get("predict_s") or 0.0
    steps = metrics.get("steps") or done["request"]["num_steps"]
    return float(steps / took) if took else 0.0
