"""Which public model a folder of weights is. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from fluxserve.core.cards import EMBEDDED_ID
from fluxserve.core.errors import StartupError
from fluxserve.flux.folder import WeightsError, inspect
from fluxserve.flux.spec import Guidance

KONTEXT_ID = "black-forest-labs/flux-kontext-dev"
DEV_ID = "black-forest-labs/flux-dev"
SCHNELL_ID = "black-forest-labs/flux-schnell"


def card_id_of(folder: str | Path) -> str:
    """The id of its card; StartupError says why a folder cannot be used."""
    try:
        spec = inspect(Path(folder))
    except WeightsError as error:
        raise StartupError(f"engine.model_dir: {error}") from error
    if spec.native_size is not None:
        return EMBEDDED_ID
    if spec.edits:
        return KONTEXT_ID
    return DEV_ID if spec.guidance is Guidance.EMBEDDED else SCHNELL_ID
