"""`fluxserve keys create|list|revoke`: through the running server, or on its files."""

import math
import re
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

import typer

from fluxserve.cli.admin import administer
from fluxserve.cli.server import Config, DataDir
from fluxserve.core.errors import FluxserveError

app = typer.Typer(help="API keys.", no_args_is_help=True)

_administer = partial(administer, asks_upstreams=False)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@app.command()
def create(
    name: Annotated[str, typer.Option(help="what to call it")] = "",
    models: Annotated[str, typer.Option(help="names it may use, by commas [all]")] = "",
    rpm: Annotated[int, typer.Option(min=0, help="requests per minute [as the server]")] = 0,
    concurrency: Annotated[int, typer.Option(min=0, help="unfinished predictions at once")] = 0,
    budget: Annotated[float, typer.Option(min=0, help="USD per month [none]")] = 0.0,
    expires: Annotated[str, typer.Option(help="such as 30d, 12h [never]")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="may administer the server")] = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Make a key. The last line printed is the key alone; it is never shown again."""
    if not math.isfinite(budget):
        raise typer.BadParameter(f"--budget takes an amount in USD, not {budget}")
    wish: dict[str, Any] = {
        "name": name,
        "models": [word.strip() for word in models.split(",") if word.strip()],
        "rate_per_minute": rpm,
        "concurrency_max": concurrency,
        "budget": budget,
        "is_admin": admin,
    }
    if expires:
        wish["expires_s"] = seconds(expires)
    key = _administer("POST", "/keys", wish, data_dir=data_dir, config=config)
    typer.echo(
        f"key {key['id']}{' ' + key['name'] if key['name'] else ''}; keep it, it is shown once:"
    )
    typer.echo(key["secret"])


@app.command("list")
def list_(data_dir: DataDir = None, config: Config = None) -> None:
    """List keys, newest last."""
    rows = _administer("GET", "/keys", None, data_dir=data_dir, config=config)["results"]
    for key in rows:
        state = "revoked" if key["revoked_at"] else "active"
        kind = "admin" if key["is_admin"] else "user"
        made = key["created_at"][:19]
        typer.echo(f"{key['id']}  {key['prefix']}...  {state:7}  {kind:5}  {made}  {key['name']}")
    if not rows:
        typer.echo("no keys: a server on a loopback address is open", err=True)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="id, name or prefix")],
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Revoke a key, at once and for good."""
    if not key.strip():
        raise typer.BadParameter("give the id, name or prefix of a key")
    if "/" in key or not key.strip("."):  # no segment of a path, so no id or prefix either
        rows = _administer("GET", "/keys", None, data_dir=data_dir, config=config)["results"]
        named = [row["id"] for row in rows if row["name"] == key and not row["revoked_at"]]
        if len(named) != 1:
            raise FluxserveError(
                f"{len(named) or 'no'} active keys have the name {key}: give the id"
            )
        key = named[0]
    path = f"/keys/{quote(key, safe='')}"
    gone = _administer("DELETE", path, None, data_dir=data_dir, config=config)
    typer.echo(f"revoked {gone['id']} {gone['name']}".rstrip())


def seconds(text: str) -> float:
    """ "30d" -> 2592000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    if not match or not float(match[1]):
        raise typer.BadParameter(f"--expires takes a time such as 30d or 12h, not {text!r}")
    return float(match[1]) * _UNITS[match[2]]
