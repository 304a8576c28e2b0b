"""Write the trained model as a checkpoint in diffusers layout, 16-bit, with its defaults.

python -m training.export --target FOLDER      checkpoint/, defaults.json, training.json
"""

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from torch import Tensor

from training.data import WORK
from training.model import Model
from training.train import CHECKPOINT
from training.vae import LATENTS, encode, load_vae

log = logging.getLogger(__name__)

BYTES_MAX: Final = 25_000_000
EMBEDDED: Final = CHECKPOINT.parent


def load_average(work: Path, name: str, start: Path) -> tuple[Model, dict[str, Any]]:
    """The averaged model of a run, and the run's state."""
    state = torch.load(work / f"{name}.pt", weights_only=True, map_location="cpu")
    model = Model(start, work / "tokenizers")
    with torch.no_grad():
        for mine, saved in zip(model.parameters(), state["average"], strict=True):
            mine.copy_(saved)
    return model.eval(), state


@torch.no_grad()
def tie_capitals(model: Model) -> int:
    """Give capitalised words the embedding of their lower-case twins; how many there were."""
    vocabulary: dict[str, int] = model.t5_tokenizer.get_vocab()
    table = model.t5.get_input_embeddings().weight
    tied = 0
    for piece, row in vocabulary.items():
        twin = vocabulary.get(piece.lower())
        if twin is not None and twin != row:
            table[row] = table[twin]
            tied += 1
    return tied


def preview_factors(matrix: Tensor) -> list[list[float]]:
    """(16, 3): the mean colour of an 8 x 8 block, -1 to 1, as a linear map of its latents."""
    noise = torch.rand(256, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = torch.nn.functional.interpolate(noise, (64, 64), mode="bicubic").clamp(-1, 1)
    latents = encode(pictures, matrix).permute(0, 2, 3, 1).reshape(-1, LATENTS)
    colors = torch.nn.functional.avg_pool2d(pictures, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    # Normal equations in double precision: a channel the pictures never use gets zeros.
    wide = latents.double()
    solution = torch.linalg.pinv(wide.T @ wide, rtol=1e-10, hermitian=True) @ wide.T
    solution = solution @ colors.double()
    return [[round(value, 4) for value in row] for row in solution.tolist()]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def export(work: Path, name: str, target: Path, start: Path) -> int:
    """Write everything under `target`; the bytes of its checkpoint. Raise ValueError over 25 MB."""
    model, state = load_average(work, name, start)
    vae, matrix = load_vae(work, start)
    log.info("%d capitalised twins tied", tie_capitals(model))
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(start / "scheduler")
    pipeline: Any = FluxKontextPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=model.clip,
        tokenizer=model.clip_tokenizer,
        text_encoder_2=model.t5,
        tokenizer_2=model.t5_tokenizer,
        transformer=model.transformer,
    )
    part = target / "checkpoint.part"
    shutil.rmtree(part, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(part)
    for config in part.rglob("*.json"):
        values = json.loads(config.read_text("utf-8"))
        if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    total = size_of(part)
    if total > BYTES_MAX:
        raise ValueError(f"checkpoint: at most {BYTES_MAX} bytes, not {total}")
    shutil.rmtree(target / "checkpoint", ignore_errors=True)
    part.rename(target / "checkpoint")
    write_defaults(target, matrix)
    for page in ("NOTICE", "MODEL_CARD.md"):
        shutil.copy(Path(__file__).with_name("card") / page, target / page)
    run = json.loads(state["config"])
    record = {"config": run, "steps": state["step"], "samples": state["seen"]}
    text = json.dumps(record, indent=2) + "\n"
    (target / "training.json").write_text(text, "utf-8")
    return total


def write_defaults(target: Path, matrix: Tensor) -> None:
    """The shipped defaults, with this model's size and preview in them."""
    values = json.loads((EMBEDDED / "defaults.json").read_text("utf-8"))
    values["native_size"], values["native_pixels"] = 128, 128 * 128
    values["preview"]["factors"] = preview_factors(matrix)
    (target / "defaults.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--name", default="cpu-128")
    parser.add_argument("--start", type=Path, default=CHECKPOINT, help="what training began from")
    parser.add_argument("--target", type=Path, default=WORK / "export")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.target.mkdir(parents=True, exist_ok=True)
    total = export(options.work, options.name, options.target, options.start)
    log.info("%s: %.1f MB", options.target, total / 1e6)


if __name__ == "__main__":
    main()
