"""A published single file becomes the transformer of a model folder.

dimensions from its header -> folder/transformer: config, link -> does all of it fit together?
-> the file itself, linked where the disk can, else copied
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from fluxserve.flux import weights
from fluxserve.flux.folder import PARTS, WeightsError
from fluxserve.flux.singlefile import describe
from fluxserve.flux.spec import TransformerSpec

CHUNK_BYTES = 16 * 2**20
Report = Callable[[int, int], None]  # bytes that are copied, and all of them


def install(
    path: Path, folder: Path, report: Report = lambda done_bytes, total_bytes: None
) -> TransformerSpec:
    """Make the published file `path` the transformer of the model folder `folder`.

    The folder brings the other parts (text encoders, tokenizers, VAE, scheduler). Raises
    WeightsError when one of them is missing, when there is a transformer already, or when the file
    is none that goes with them; OSError when it cannot be written. Then nothing is left behind.
    """
    spec = describe(path)
    part = folder / "transformer"
    missing = [name for name in PARTS if name != part.name and not (folder / name).is_dir()]
    if missing:
        raise WeightsError(f"{folder.name}: {', '.join(missing)} missing; download them first")
    if part.exists() and any(part.iterdir()):
        raise WeightsError(f"{folder.name}: has a transformer already; take it away first")
    config = {"_class_name": "FluxTransformer2DModel", "patch_size": 1, **asdict(spec)}
    target = part / "diffusion_pytorch_model.safetensors"
    with ExitStack() as undo:
        part.mkdir(exist_ok=True)
        undo.callback(shutil.rmtree, part)
        (part / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        target.symlink_to(path.resolve())  # all that is checked can be read through it
        weights.check(folder)
        _bring(path.resolve(), target, report)
        undo.pop_all()
    return spec


def _bring(path: Path, target: Path, report: Report) -> None:
    """Put the file itself where `target` is, all of it at once."""
    whole = target.with_suffix(".part")
    try:
        os.link(path, whole)
    except OSError:
        _copy(path, whole, report)
    whole.replace(target)


def _copy(path: Path, target: Path, report: Report) -> None:
    total = path.stat().st_size
    with path.open("rb") as source, target.open("wb") as copied:
        while chunk := source.read(CHUNK_BYTES):
            copied.write(chunk)
            report(copied.tell(), total)
