"""The command line: `serve`, and an ordinary client of the native API for everything else."""

import errno
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fluxserve.cli import bench, doctor, keys, models, pictures, server
from fluxserve.core.errors import FluxserveError, StartupError
from fluxserve.settings import wants_colour

FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    name="fluxserve",
    help="Serve FLUX image generation and editing through the APIs your code already calls.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
server.add_to(app)
pictures.add_to(app)
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
bench.add_to(app)
doctor.add_to(app)


@app.command()
def version() -> None:
    """Print the version."""
    from fluxserve import __version__

    typer.echo(f"fluxserve {__version__}")


def _tell_version(*, is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


@app.callback()
def about(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda value: _tell_version(is_asked=value),
            help="print the version",
        ),
    ] = False,
) -> None:
    """Serve FLUX image generation and editing through the APIs your code already calls."""
    if not wants_colour():
        context.color = False


def main(words: Sequence[str] | None = None) -> None:
    """Exit codes: 0 done, 1 it failed, 2 wrong use, 3 refused to start, 130 interrupted."""
    try:
        app(args=words, prog_name="fluxserve")
    except StartupError as error:
        _say(error.message)
        sys.exit(3)
    except FluxserveError as error:
        _say(error.message)
        sys.exit(1)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _say(f"what was to be written found no room: {error.strerror}")
        sys.exit(1)


def _say(text: str) -> None:
    typer.echo(f"fluxserve: {text}", err=True)
