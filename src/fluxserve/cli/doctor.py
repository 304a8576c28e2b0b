"""`fluxserve doctor`: what this machine can serve, and how to get the real model."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator

import typer

from fluxserve import settings as setting
from fluxserve.cli.server import Config, DataDir
from fluxserve.core.cards import CARDS
from fluxserve.core.errors import StartupError

GIB = 1024**3
PACKAGES = ("torch", "safetensors", "tokenizers", "obstore", "starlette", "uvicorn")
NEEDS_GIB = 34  # FLUX.1 in bfloat16 with its text encoders, on disk


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(data_dir: DataDir = None, config: Config = None) -> None:
    """Say what works here, what does not, and what to do about it."""
    flags = {"data_dir": data_dir} if data_dir else {}
    settings = setting.load(flags, config=config)
    is_well = True
    for good, text in _findings(settings):
        is_well = is_well and good is not False
        mark = {True: "ok  ", False: "FAIL", None: "note"}[good]
        colour = {True: "green", False: "red", None: "yellow"}[good]
        typer.secho(mark, fg=colour, nl=False)
        typer.echo(f"  {text}")
    typer.echo()
    typer.echo(_advice(settings) if is_well else "Put right what failed above; then ask again.")
    raise typer.Exit(0 if is_well else 1)


def _findings(settings: setting.Settings) -> Iterator[tuple[bool | None, str]]:
    from fluxserve import __version__

    yield True, f"fluxserve {__version__}, Python {platform.python_version()}, {sys.platform}"
    for name in PACKAGES:
        try:
            yield True, f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield None, f"{name} is not installed: `pip install fluxserve[local]` brings it"
    yield from _device()
    data = settings.data
    place = next(path for path in (data, *data.parents) if path.exists())
    free = shutil.disk_usage(place).free / GIB
    if not place.is_dir():
        yield False, f"data directory {data}: {place} is no folder"
    elif not os.access(place, os.W_OK):
        yield False, f"data directory {data}: {place} cannot be written"
    else:
        yield free > 1, f"data directory {data}: {free:.0f} GiB free"
    yield from _models(settings)
    yield from _certificate(settings)


def _certificate(settings: setting.Settings) -> Iterator[tuple[bool | None, str]]:
    if not settings.tls_cert and not settings.tls_key:
        return
    from fluxserve.serving import check_certificate

    try:
        check_certificate(settings.tls_cert, settings.tls_key)
    except StartupError as error:
        yield False, error.message
    else:
        yield True, f"https with the certificate {settings.tls_cert}"


def _device() -> Iterator[tuple[bool | None, str]]:
    try:
        import torch
    except ImportError:
        yield None, "no torch: this is a gateway to upstreams only"
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield True, f"cuda:{index} {device.name}, {device.total_memory / GIB:.0f} GiB"
    elif torch.backends.mps.is_available():
        yield True, "Apple GPU (mps)"
    else:
        yield None, f"no GPU: {os.cpu_count()} CPU cores, fit for the embedded model"


def _models(settings: setting.Settings) -> Iterator[tuple[bool | None, str]]:
    from fluxserve.core.catalog import Catalog
    from fluxserve.engines.choose import choose_engines

    try:
        choice = choose_engines(settings, Catalog(CARDS, lambda: 0))
    except StartupError as error:
        yield False, error.message
        return
    for route in choice.routes:
        yield True, f"{route.model} is served by {route.engine}"


def _advice(settings: setting.Settings) -> str:
    if settings.simulator.enabled:
        return "The simulator answers for every model: set simulator.enabled to false for pictures."
    if settings.engine.model_dir or settings.upstream:
        return "A real model is configured."
    open_models = ", ".join(card.weights for card in CARDS if card.weights)
    return (
        "Pictures come from the small built-in model. For a real one:\n"
        f"  on a GPU: `fluxserve models pull NAME` ({open_models}; about {NEEDS_GIB} GiB each),\n"
        "            then `fluxserve serve --set engine.model_dir=FOLDER`\n"
        "  or from a provider: an [[upstream]] in the settings file, see docs/configuration.md"
    )
