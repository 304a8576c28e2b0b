"""Which model a folder of weights holds, read from its small JSON files; imports no torch."""

import json
from pathlib import Path

from fluxserve.core.errors import StartupError

KONTEXT = "black-forest-labs/flux-kontext-dev"
DEV = "black-forest-labs/flux-dev"
SCHNELL = "black-forest-labs/flux-schnell"


def card_id_of(folder: str) -> str:
    """The card of a diffusers folder; StartupError says what is wrong with another one."""
    root = Path(folder).expanduser()
    index = _read(root / "model_index.json")
    transformer = _read(root / "transformer" / "config.json")
    match index.get("_class_name"):
        case "FluxKontextPipeline":
            return KONTEXT
        case "FluxPipeline":
            return DEV if transformer.get("guidance_embeds") else SCHNELL
        case other:
            raise StartupError(
                f"engine.model_dir: {root} holds a {other}; "
                "FLUX.1 Kontext [dev], [dev] and [schnell] can be served"
            )


def _read(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(
            f"engine.model_dir: {path} cannot be read ({error.strerror}); "
            "`fluxserve models pull` makes such a folder"
        ) from None
    except ValueError:
        raise StartupError(f"engine.model_dir: {path} is not valid JSON") from None
    if not isinstance(value, dict):
        raise StartupError(f"engine.model_dir: {path} is not a JSON object")
    return value
