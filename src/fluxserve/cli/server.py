"""`fluxserve serve`."""

import contextlib
from typing import Annotated, Any

import typer

from fluxserve import settings as setting
from fluxserve.engines import early
from fluxserve.ops import logs

DataDir = Annotated[str | None, typer.Option(help="where everything is kept")]
Config = Annotated[str | None, typer.Option(help="settings file (TOML)")]


def add_to(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port; 0: a free one [8000]")] = None,
    data_dir: DataDir = None,
    config: Config = None,
    tls_cert: Annotated[
        str | None, typer.Option(help="certificate chain (PEM): serve https")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(help="its private key (PEM) [in the file of the certificate]")
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(help="scheme://host[:port][/prefix] as callers see it")
    ] = None,
    insecure_open: Annotated[
        bool | None, typer.Option("--insecure-open", help="no keys on a public address")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="any setting, such as simulator.seconds=0.5; repeatable"),
    ] = None,
) -> None:
    """Start the server; prints `fluxserve ready on URL` once it accepts requests."""
    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "public_url": public_url,
        "insecure_open": insecure_open,
        "log_level": log_level,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    settings = setting.load(with_sets(given, set_ or []), config=config)
    logs.set_up(settings.log_level, colour=setting.wants_colour())
    with contextlib.closing(early.begin(settings)) as begun:
        from fluxserve import serving  # while its engine imports torch

        code = serving.serve(settings, begun)
    raise typer.Exit(code)


def with_sets(flags: dict[str, Any], sets: list[str]) -> dict[str, Any]:
    """Flags and `--set section.key=value` words as one nested table."""
    for word in sets:
        path, found, value = word.partition("=")
        if not found or not path.strip():
            raise typer.BadParameter(f"--set takes NAME=VALUE, not {word!r}")
        setting.put(flags, path.strip().replace("-", "_").split("."), value)
    return flags
