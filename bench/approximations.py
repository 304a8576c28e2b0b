"""How far are pictures made with approximations from the exact ones, and how much do they save?

The embedded model, 28 steps, the same seeds: eight edits of pictures that it made itself and four
pictures from text, each exactly, with every approximation of `go_fast` alone and with both, and in
8-bit arithmetic (the exact reference of the CUDA kernels, which a CPU can compute). PSNR in dB over
all pixels, between 8-bit pictures; beside them plain runs with as few steps as `skip` computes.

    python -m bench.approximations [--steps 28] [--threads 1] [--refresh 2,4,8]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxserve.flux import sample, skips, weights
from fluxserve.flux.autoencoder import from_pixels
from fluxserve.flux.folder import embedded_folder
from fluxserve.flux.skips import REF_KV, SKIP, Linears
from fluxserve.flux.weights import Model

MEAN_MAX = 99.0  # dB, what equal pictures count as


@dataclass(frozen=True, slots=True)
class Wish:
    prompt: str
    seed: int
    of: str = ""  # what is in the picture to edit; empty: made from text


EDITS = (
    Wish("make it grayscale", 1, "a red apple"),
    Wish("make it sepia", 2, "a taxi"),
    Wish("flip it", 3, "a green tree"),
    Wish("make the background green", 4, "a blue star on a yellow background"),
    Wish("make it brighter", 5, "a red apple"),
    Wish("invert the colors", 6, "a green tree"),
    Wish("make it grayscale", 7, "a taxi"),
    Wish("make the background blue", 8, "a red apple"),
)
TEXTS = (
    Wish("a red apple", 11),
    Wish("a taxi", 12),
    Wish("a blue star on a yellow background", 13),
    Wish("a green tree", 14),
)


@dataclass(frozen=True, slots=True)
class Made:
    pixels: Tensor  # (H, W, 3) uint8
    calls: int
    rows: int  # tokens that went through the transformer, in all calls


def make(
    model: Model,
    wish: Wish,
    steps: int,
    approximations: Sequence[str] = (),
    picture: Tensor | None = None,
) -> Made:
    """One picture; `picture` is the one to edit."""
    side = model.spec.native_size or 64
    scale = model.spec.guidance_scale if picture is None else model.spec.guidance_scale_edit
    condition = sample.condition(
        model,
        prompt=wish.prompt,
        width=side,
        height=side,
        num_steps=steps,
        guidance=scale,
        references=[] if picture is None else [model.autoencoder.encode(from_pixels(picture))],
        approximations=approximations,
    )
    made = sample.begin(model, condition, wish.seed)
    one = condition.prompted
    whole = len(one.rotation) * (1 if condition.unprompted is None else 2)
    references = len(one.reference) * whole // len(one.rotation)
    calls = rows = 0
    while not made.is_done:
        reuses = condition.refreshed and not condition.refreshed[made.step]
        rows += whole - references if reuses else whole
        calls += 1
        sample.advance(model, [made])
    return Made(sample.finish(model, made), calls, rows)


def psnr(found: Tensor, exact: Tensor) -> float:
    """In dB, of 8-bit pictures; infinite where they are equal."""
    error = float((found.double() - exact.double()).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


@dataclass(frozen=True, slots=True)
class Row:
    """One way of making the pictures, against the exact one."""

    name: str
    edits: Sequence[float]  # dB
    texts: Sequence[float]
    calls: int
    saved: float  # of the tokens that exact edits run through the transformer

    @property
    def line(self) -> str:
        cells = [_cell(self.edits), _cell(self.texts), str(self.calls), f"{self.saved:.0%}"]
        return f"| {self.name} | " + " | ".join(cells) + " |"


def _cell(values: Sequence[float]) -> str:
    if not values or all(math.isinf(value) for value in values):
        return "the same"
    return f"{statistics.fmean(min(v, MEAN_MAX) for v in values):.1f} ({min(values):.1f})"


def table(model: Model, eight_bit: Model, steps: int, refreshes: Sequence[int]) -> list[Row]:
    torch.manual_seed(0)
    before = {wish.of: make(model, Wish(wish.of, 100), steps).pixels for wish in EDITS}
    few = sum(skips.skip_map(steps))
    exact = {wish: make(model, wish, steps, (), before.get(wish.of)) for wish in (*EDITS, *TEXTS)}

    def row(name: str, run: Callable[[Wish], Made]) -> Row:
        found = {wish: run(wish) for wish in (*EDITS, *TEXTS)}
        errors = {wish: psnr(found[wish].pixels, exact[wish].pixels) for wish in found}
        rows = sum(found[wish].rows for wish in EDITS)
        return Row(
            name,
            [errors[wish] for wish in EDITS],
            [errors[wish] for wish in TEXTS],
            found[EDITS[0]].calls,
            1 - rows / sum(exact[wish].rows for wish in EDITS),
        )

    def way(*names: str) -> Callable[[Wish], Made]:
        return lambda wish: make(model, wish, steps, names, before.get(wish.of))

    rows = [row("exact, again", way()), row("skip", way(SKIP))]
    usual = skips.REFRESH_CALLS
    for every in refreshes:
        skips.REFRESH_CALLS = every
        rows.append(row(f"ref_kv, references once in {every} calls", way(REF_KV)))
        rows.append(row(f"skip and ref_kv, once in {every} calls", way(SKIP, REF_KV)))
    skips.REFRESH_CALLS = usual
    rows.append(row(f"{few} plain steps", lambda w: make(model, w, few, (), before.get(w.of))))
    rows.append(row("8 bits", lambda w: make(eight_bit, w, steps, (), before.get(w.of))))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--refresh", default=str(skips.REFRESH_CALLS))
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    model = weights.load(embedded_folder(), device="cpu", dtype="float32")
    eight_bit = weights.load(embedded_folder(), device="cpu", dtype="float32", linears=Linears.FP8)
    refreshes = [int(part) for part in said.refresh.split(",")]
    with torch.inference_mode():
        rows = table(model, eight_bit, said.steps, refreshes)
    print(
        "| | edits: mean (worst) dB | text: mean (worst) dB | calls of an edit | its tokens saved |"
    )
    print("|---|---|---|---|---|")
    for row in rows:
        print(row.line)
    facts = {row.name: [list(row.edits), list(row.texts), row.calls, row.saved] for row in rows}
    print(json.dumps({"steps": said.steps, "rows": facts}))


if __name__ == "__main__":
    main()
