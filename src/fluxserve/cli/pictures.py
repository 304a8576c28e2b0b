"""`fluxserve generate` and `fluxserve edit`: a progress bar, previews, and files at the end."""

import base64
import json
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fluxserve.cli.client import Client, connected, read_picture
from fluxserve.core.errors import FluxserveError, Unavailable
from fluxserve.core.request import Approximation

Output = Annotated[str | None, typer.Option("-o", "--output", help="file to write [by seed]")]
Model = Annotated[str, typer.Option("--model", "-m", help="public name of a model")]
SizeText = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT in pixels")]
Steps = Annotated[int | None, typer.Option("--steps", help="denoising steps")]
Guidance = Annotated[float | None, typer.Option("--guidance", help="guidance scale")]
Seed = Annotated[int | None, typer.Option("--seed", help="the same seed gives the same picture")]
Count = Annotated[int, typer.Option("--n", min=1, help="how many pictures")]
Approximate = Annotated[
    str | None, typer.Option("--approximate", help="skip, ref_kv, fp8, with commas; or none")
]
Server = Annotated[
    str | None, typer.Option(envvar="FLUXSERVE_SERVER", help="URL of a server [run in process]")
]
Key = Annotated[str | None, typer.Option(envvar="FLUXSERVE_API_KEY", help="key of that server")]
PreviewFile = Annotated[
    str | None, typer.Option("--preview", help="file that shows it growing (PNG)")
]
Config = Annotated[str | None, typer.Option(help="settings file (TOML), not with --server")]
AsJson = Annotated[bool, typer.Option("--json", help="print prediction and files as JSON")]

EMBEDDED = "fluxserve/embedded"
NONE = "none"
PATIENCE_S = 30.0  # without an answer, once a prediction is under way
PAUSE_S = 0.3  # between two questions: a server that is going down answers at once
_SIZE = re.compile(r"(\d{1,5})[x*×](\d{1,5})", re.IGNORECASE)
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def add_to(app: typer.Typer) -> None:
    app.command()(generate)
    app.command()(edit)


def generate(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    output: Output = None,
    model: Model = EMBEDDED,
    size: SizeText = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    n: Count = 1,
    approximate: Approximate = None,
    server: Server = None,
    key: Key = None,
    preview: PreviewFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a picture from text."""
    wish = _wish(model, prompt, size, steps, guidance, seed, n, output, preview, approximate)
    with connected(server, key, config=config) as client:
        _make(client, wish, output, preview, as_json=as_json)


def edit(
    words: Annotated[
        list[str], typer.Argument(metavar="IMAGE... INSTRUCTION", help="pictures, then what to do")
    ],
    output: Output = None,
    model: Model = EMBEDDED,
    size: SizeText = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    n: Count = 1,
    approximate: Approximate = None,
    server: Server = None,
    key: Key = None,
    preview: PreviewFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Edit one or more pictures by instruction."""
    if len(words) < 2:
        raise typer.BadParameter("give at least one picture and then the instruction")
    *paths, instruction = words
    pictures = [read_picture(path) for path in paths]
    wish = _wish(model, instruction, size, steps, guidance, seed, n, output, preview, approximate)
    with connected(server, key, config=config) as client:
        wish["images"] = [
            _upload(client, data, path) for data, path in zip(pictures, paths, strict=True)
        ]
        _make(client, wish, output, preview, as_json=as_json)


def _upload(client: Client, data: bytes, path: str) -> str:
    """A link to the picture; an error names the file as the command line did."""
    try:
        return client.upload(data, Path(path).name)
    except Unavailable:
        raise
    except FluxserveError as error:
        raise FluxserveError(f"{path}: {error.message.removeprefix('file: ')}") from None


def _wish(
    model: str,
    prompt: str,
    size: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int | None,
    n: int,
    output: str | None,
    preview: str | None,
    approximate: str | None,
) -> dict[str, Any]:
    suffix = Path(output).suffix.lower() if output else ".png"
    if suffix not in _FORMATS:
        raise typer.BadParameter(f"-o: a name ending in {', '.join(_FORMATS)}, not {output}")
    if size and not _SIZE.fullmatch(size):
        raise typer.BadParameter(f"--size: WIDTHxHEIGHT in pixels such as 768x512, not {size}")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise typer.BadParameter("the words hold bytes that are no text in this locale")
    for file in filter(None, (output, preview)):
        if not Path(file).expanduser().absolute().parent.is_dir():
            raise FluxserveError(f"{file} cannot be written: there is no such folder")
    wish: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "size": size,
        "num_steps": steps,
        "guidance": guidance,
        "seed": seed,
        "num_outputs": n,
        "approximate": None if approximate is None else _names(approximate),
        "output_format": _FORMATS[suffix],
        "preview_steps": 1 if preview else 0,
    }
    return {name: value for name, value in wish.items() if value is not None}


def _names(approximate: str) -> list[str]:
    """Approximations from the command line; BadParameter for one that there is not."""
    names = [name.strip() for name in approximate.split(",") if name.strip()]
    if names == [NONE]:
        return []
    known = tuple(Approximation)
    if not names or any(name not in known for name in names):
        words = f"some of {', '.join(known)}, with commas, or {NONE}, not {approximate!r}"
        raise typer.BadParameter(f"--approximate: {words}")
    return names


def _make(
    client: Client, wish: dict[str, Any], output: str | None, preview: str | None, *, as_json: bool
) -> None:
    prediction = client.call("POST", "/predictions", wish)
    try:
        done = _follow(client, prediction, preview)
    except KeyboardInterrupt:
        with suppress(FluxserveError):
            client.call("POST", f"/predictions/{prediction['id']}/cancel")
        raise
    if done["status"] != "succeeded":
        said = done["error"]["message"] if done["error"] else done["status"]
        raise FluxserveError(f"no picture: {said}")
    paths = _save(client, done, output)
    if as_json:
        typer.echo(json.dumps({**done, "files": [str(path) for path in paths]}, ensure_ascii=False))
    for path in [] if as_json else paths:
        typer.echo(str(path))
    if wish.get("approximate") is not None:
        typer.secho(_account(done), err=True, dim=True)
    _hint(done)


def _follow(client: Client, prediction: dict[str, Any], preview: str | None) -> dict[str, Any]:
    """Shows the way on a terminal; returns the finished prediction."""
    path = f"/predictions/{prediction['id']}"
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting", total=None, note=_place(prediction))
        with suppress(Unavailable):  # cut off by somebody between, or the server is going down
            for kind, data in client.events(prediction["id"]):
                if kind == "started":
                    bar.update(task, description="drawing")
                elif kind == "progress":
                    bar.update(task, **_progress(data))
                elif kind == "preview" and preview:
                    _write(Path(preview), base64.b64decode(data["image"].partition(",")[2]))
                    bar.update(task, description=f"preview in {preview}")
                elif kind == "finished":
                    done: dict[str, Any] = data["prediction"]
                    return done
        bar.update(task, description="asking again")
        return _asked_again(client, path)


def _asked_again(client: Client, path: str) -> dict[str, Any]:
    """The prediction once it is finished; a server that is started again meanwhile goes on."""
    heard_at = time.monotonic()
    while True:
        try:
            fresh: dict[str, Any] = client.call("GET", f"{path}?wait=30")
        except Unavailable as error:
            if time.monotonic() - heard_at > PATIENCE_S:
                said = f"{error.message}; nobody tells what became of {path.lstrip('/')}"
                raise Unavailable(said) from None
        else:
            if fresh["finished_at"]:
                return fresh
            heard_at = time.monotonic()
        time.sleep(PAUSE_S)


def _progress(data: dict[str, Any]) -> dict[str, Any]:
    note = _place(data) or f"step {data['step']}/{data['total']}{_left(data)}"
    return {"total": data["total"] or None, "completed": data["step"], "note": note}


def _place(data: dict[str, Any]) -> str:
    """Where it is in the queue, and for how long yet; nothing when it is its turn."""
    before = data.get("queue_position")
    return f"{before} before this one{_left(data)}" if before else ""


def _left(data: dict[str, Any]) -> str:
    seconds = data.get("eta_s")
    return "" if seconds is None else f", {max(0.0, seconds):.1f} s left"


def _save(client: Client, done: dict[str, Any], output: str | None) -> list[Path]:
    paths: list[Path] = []
    for index, image in enumerate(done["outputs"]):
        path = _name(output, index, len(done["outputs"]), image)
        _write(path, client.download(image["url"]))
        paths.append(path)
    return paths


def _write(path: Path, data: bytes) -> None:
    try:
        path.expanduser().write_bytes(data)
    except OSError as error:
        raise FluxserveError(f"{path} cannot be written: {error.strerror}") from None


def _name(output: str | None, index: int, count: int, image: dict[str, Any]) -> Path:
    if output:
        path = Path(output).expanduser()
        return path if count == 1 else path.with_stem(f"{path.stem}-{index}")
    suffix = {"image/jpeg": "jpg", "image/webp": "webp"}.get(image["mime"], "png")
    path = Path(f"fluxserve-{image['seed']}.{suffix}")
    number = 1
    while path.exists():
        path = Path(f"fluxserve-{image['seed']}-{number}.{suffix}")
        number += 1
    return path


def _account(done: dict[str, Any]) -> str:
    """What was approximated, as the server tells."""
    metrics = done["metrics"]
    ran = ", ".join(metrics.get("approximations") or []) or "nothing"
    return f"approximated: {ran}; calls of the model: {metrics.get('model_calls', 'not told')}"


def _hint(done: dict[str, Any]) -> None:
    """One line when the small model stood in, for whoever watches a terminal."""
    if sys.stderr.isatty() and re.search("embedded", done.get("served_by") or done["engine"]):
        text = "made by the small built-in model; `fluxserve doctor` tells how to get a real one"
        typer.secho(text, err=True, dim=True)
