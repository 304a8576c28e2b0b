"""`fluxserve models list|show|pull`."""

import json
from typing import Annotated

import typer

from fluxserve.cli.admin import administer
from fluxserve.cli.server import Config, DataDir

app = typer.Typer(help="Models and their weights.", no_args_is_help=True)


@app.command("list")
def list_(data_dir: DataDir = None, config: Config = None) -> None:
    """Every model this server knows, and who serves it."""
    rows = administer("GET", "/models", None, data_dir=data_dir, config=config)["results"]
    for card in rows:
        served = card["engine"] or "-"
        typer.echo(f"{card['id']:40} {served:12} {', '.join(card['tasks'])}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="any public name")],
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """One model card as JSON: limits, defaults, sizes, licence, aliases."""
    card = administer("GET", f"/models/{name}", None, data_dir=data_dir, config=config)
    typer.echo(json.dumps(card, indent=2))
