"""`fluxserve models list|show|pull|install`."""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fluxserve import settings as setting
from fluxserve.cli.admin import administer
from fluxserve.cli.server import Config, DataDir
from fluxserve.core.cards import CARDS
from fluxserve.core.errors import FluxserveError, StartupError
from fluxserve.flux.folder import Part, WeightsError

if TYPE_CHECKING:
    from fluxserve.flux.pull import Licence
    from fluxserve.flux.transfer import Hub

app = typer.Typer(help="Models and their weights.", no_args_is_help=True)

TOKEN_ENV = "HF_TOKEN"  # where a hub's token is looked for when nobody names a variable
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command("list")
def list_(as_json: AsJson = False, data_dir: DataDir = None, config: Config = None) -> None:
    """Every model this server knows, and who serves it."""
    rows = administer("GET", "/models", None, data_dir=data_dir, config=config)["results"]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    typer.echo(f"{'MODEL':40} {'SERVED BY':12} TASKS")
    for card in rows:
        served = card["engine"] or "-"
        typer.echo(f"{card['id']:40} {served:12} {', '.join(card['tasks'])}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="any public name")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """One model: limits, defaults, sizes, licence, and what else it is called."""
    card = administer("GET", f"/models/{quote(name)}", None, data_dir=data_dir, config=config)
    if as_json:
        typer.echo(json.dumps(card, indent=2))
        return
    width = max(len(label) for label, _ in _lines(card))
    for label, text in _lines(card):
        typer.echo(f"{label:{width}}  {text}")


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="any public name, or OWNER/REPOSITORY of the hub")],
    folder: Annotated[
        str | None, typer.Option("--dir", help="where to put it [DATA_DIR/models/NAME]")
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="yes to the licence, which is printed")
    ] = False,
    token_env: Annotated[
        str | None, typer.Option(help=f"variable that holds the hub's token [{TOKEN_ENV}]")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of another hub")] = None,
    revision: Annotated[str, typer.Option(help="branch, tag or commit")] = "main",
    without: Annotated[
        list[Part] | None, typer.Option(help="leave this part out; may be said again")
    ] = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Download the weights of a model; broken off, it goes on where it stopped."""
    repo = _repository(name)
    place = Path(folder).expanduser() if folder else _place(repo, data_dir, config)
    try:
        from fluxserve.flux.transfer import Hub
    except ImportError:
        raise _lacking("downloading") from None
    token = _token(token_env)
    hub = Hub(repo=repo, revision=revision, token=token, endpoint=endpoint)
    _download(hub, place, accept_license=accept_license, without=without or ())
    typer.echo(str(place))
    if not without:
        _tell_use(place)
    elif Part.TRANSFORMER in without:
        typer.echo(f"complete it with: fluxserve models install FILE {place}", err=True)


@app.command()
def install(
    file: Annotated[Path, typer.Argument(help="a transformer as published in one file")],
    folder: Annotated[Path, typer.Argument(help="a model folder that lacks its transformer")],
) -> None:
    """Make a published single file the transformer of a model folder."""
    try:
        from fluxserve.flux.install import install as put
    except ImportError:
        raise _lacking("installing") from None
    path, place = file.expanduser(), folder.expanduser()
    try:
        with _shown("checking") as (_, show):
            put(path, place, lambda done, total: show(path.name, done, total))
    except WeightsError as error:
        raise FluxserveError(str(error)) from error
    except OSError as error:
        raise FluxserveError(f"{place}: {error.strerror or error}") from error
    typer.echo(str(place))
    _tell_use(place)


def _lacking(work: str) -> FluxserveError:
    return FluxserveError(f"{work} needs what computes, too: `pip install fluxserve[local]`")


def _tell_use(place: Path) -> None:
    typer.echo(f"serve it with: fluxserve serve --set engine.model_dir={place}", err=True)


@contextmanager
def _shown(first: str) -> Iterator[tuple[Progress, Callable[[str, int, int], None]]]:
    """A bar on a terminal, and what moves it: a file, bytes done, all bytes."""
    console = Console(stderr=True)
    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(first, total=None)

        def show(file: str, done_bytes: int, total_bytes: int) -> None:
            bar.update(task, description=file, completed=done_bytes, total=total_bytes)

        yield bar, show


def _download(hub: "Hub", place: Path, *, accept_license: bool, without: Collection[str]) -> None:
    from fluxserve.flux.pull import pull as download
    from fluxserve.flux.transfer import PullError

    with _shown("looking") as (bar, show):

        def accept(licence: "Licence") -> bool:
            bar.stop()
            try:
                return _accept(licence, is_accepted=accept_license)
            finally:
                bar.start()

        try:
            download(hub, place, accept=accept, report=lambda done: show(*done), without=without)
        except PullError as error:
            raise FluxserveError(str(error)) from error


def _accept(licence: "Licence", *, is_accepted: bool) -> bool:
    """Show the licence, and ask whoever sits at the terminal unless they said yes before."""
    typer.echo(f"{licence.repo} is under this licence: {licence.name}", err=True)
    if licence.url:
        typer.echo(licence.url, err=True)
    if licence.is_gated:
        typer.echo("its owner wants it accepted on the hub's page as well", err=True)
    if is_accepted:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise FluxserveError("read the licence, and say yes to it with --accept-license")
    if licence.text:
        typer.echo(licence.text, err=True)
    return typer.confirm("Do you accept it?", err=True)


def _repository(name: str) -> str:
    """The repository with the weights of a model; FluxserveError."""
    card = next((card for card in CARDS if name in card.names), None)
    if card is None:
        if _REPOSITORY.fullmatch(name):
            return name
        raise FluxserveError(f"there is no model named {name!r}: see `fluxserve models list`")
    if card.weights:
        return card.weights
    known = ", ".join(card.weights for card in CARDS if card.weights)
    raise FluxserveError(f"{card.id} has no weights to download; these have: {known}")


def _place(repo: str, data_dir: str | None, config: str | None) -> Path:
    settings = setting.load({"data_dir": data_dir} if data_dir else {}, config=config)
    return settings.data / "models" / repo.rpartition("/")[2]


def _token(variable: str | None) -> str | None:
    try:
        return setting.secret_from(variable or TOKEN_ENV)
    except StartupError:
        if variable:  # named by the caller, so it should hold one
            raise
        return None


def _lines(card: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person wants to know of a model card, label and text."""
    limits, defaults = card["limits"], card["defaults"]
    low, high = limits["side_px"]
    least, most = limits["images"]
    ratios = ", ".join(f"{name} ({size})" for name, size in card["aspect_ratios"].items())
    rows = [
        ("model", card["id"]),
        ("", f"{card['title']}: {card['description']}"),
        ("served by", card["engine"] or "nobody here"),
        ("tasks", ", ".join(card["tasks"])),
        ("pictures", f"{least} to {most} in, up to {limits['num_outputs_max']} out"),
        ("steps", f"{defaults['num_steps']}, of {_span(limits['num_steps'])}"),
        ("guidance", f"{defaults['guidance']:g}, of {_span(limits['guidance'])}"),
        ("size", f"{defaults['size']}, sides {low} to {high} px"),
        ("ratios", ratios or "any"),
        ("format", f"{defaults['output_format']}, quality {defaults['output_quality']}"),
        ("licence", " ".join(filter(None, (card["license"], card["license_url"])))),
        ("weights", card["weights"] or "not open"),
        ("also called", ", ".join(card["aliases"]) or "-"),
    ]
    return [(label, text) for label, text in rows if text]


def _span(pair: list[float]) -> str:
    return f"{pair[0]:g} to {pair[1]:g}"
