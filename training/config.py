"""One training run, written down: what is drawn, how much per step, how fast it learns."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from training.scenes import Mix


@dataclass(frozen=True)
class Group:
    """One part of every step. task: text, edit, or crop (local effects on a 64 px piece)."""

    task: str
    count: int
    sizes: tuple[tuple[int, int], ...]
    size_weights: tuple[float, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Config:
    """rate: peak learning rate. decay: the share of the minutes over which it falls to zero.

    early_share: of the noise levels, how many are high ones. own_share: of the edits with one right
    answer, how many start from the model's own first guess.
    """

    name: str
    seed: int
    mix: Mix
    groups: tuple[Group, ...]
    rate: float
    warmup_steps: int
    decay: float
    average: float
    prompt_dropout: float
    early_share: float
    weight_decay: float
    double_blocks: int = 2
    single_blocks: int = 6
    heads: int = 6
    own_share: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def read(path: Path) -> Config:
    """A Config from its JSON file; a key it does not know raises TypeError naming it."""
    values = json.loads(path.read_text("utf-8"))
    groups = tuple(
        Group(
            **g
            | {
                "sizes": tuple((int(h), int(w)) for h, w in g["sizes"]),
                "size_weights": tuple(g["size_weights"]),
            }
        )
        for g in values.pop("groups")
    )
    return Config(mix=Mix(**values.pop("mix")), groups=groups, **values)
