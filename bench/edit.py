"""How long does a picture take on the embedded model, here and in diffusers' pipelines?

Both sides use the same weights, steps, sizes, guidance and number of threads, and take turns in one
run. Alone: one edit and one text-to-image picture at a time. Together: eight mixed requests that
arrive at once, answered by our engine together and by diffusers one after the other; their mean
latency is compared. Ours is measured through the engine process, PNG files included.

    python -m bench.edit [--rounds 7] [--steps 10] [--threads 2]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from fluxserve.core.ports import EncodedImage, Job, Output
from fluxserve.core.request import ImageRequest, OutputFormat, Task
from fluxserve.engines.local.child import OPENMP_SPINS
from fluxserve.engines.local.cores import physical_cores
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.start import Setup
from fluxserve.flux.folder import embedded_folder, inspect
from fluxserve.flux.spec import ModelSpec
from fluxserve.images.codec import encode


@dataclass(frozen=True, slots=True)
class Wish:
    prompt: str
    is_edit: bool
    steps: int


def mixture(steps: int) -> list[Wish]:
    """Eight requests: half edits, half text-to-image, of different lengths."""
    return [
        Wish("make it grayscale", True, steps),
        Wish("a red apple", False, steps),
        Wish("make it sepia", True, steps * 2),
        Wish("a blue star on a yellow background", False, steps // 2),
        Wish("make the background green", True, steps),
        Wish("a taxi", False, steps * 2),
        Wish("flip it", True, steps // 2),
        Wish("a green tree", False, steps),
    ]


class Theirs:
    """The pipelines of diffusers on the same folder."""

    def __init__(self, spec: ModelSpec, photo: Image.Image, threads: int) -> None:
        os.putenv("GOMP_SPINCOUNT", OPENMP_SPINS)  # as in our engine: it helps on a busy machine
        import torch
        from diffusers import FluxKontextPipeline, FluxPipeline
        from diffusers.utils import logging as diffusers_logging

        torch.set_num_threads(threads)
        self._generator = torch.Generator()
        diffusers_logging.set_verbosity_error()
        self._spec, self._photo = spec, photo
        self._edit = FluxKontextPipeline.from_pretrained(embedded_folder(), dtype=torch.float32)
        self._text = FluxPipeline(
            **{n: p for n, p in self._edit.components.items() if n != "safety_checker"}
        )
        for pipeline in (self._edit, self._text):
            pipeline.set_progress_bar_config(disable=True)

    def make(self, wish: Wish, seed: int) -> float:
        """Seconds for one picture, PNG file included."""
        began = time.perf_counter()
        side = self._spec.native_size or 64
        said = {
            "prompt": wish.prompt,
            "negative_prompt": "",
            "width": side,
            "height": side,
            "num_inference_steps": wish.steps,
            "max_sequence_length": self._spec.text_tokens,
            "generator": self._generator.manual_seed(seed),
        }
        if wish.is_edit:
            scale = self._spec.guidance_scale_edit
            made = self._edit(
                image=self._photo,
                true_cfg_scale=scale,
                max_area=side * side,
                _auto_resize=False,
                **said,
            )
        else:
            made = self._text(true_cfg_scale=self._spec.guidance_scale, **said)
        made.images[0].save(io.BytesIO(), "PNG", compress_level=1)
        return time.perf_counter() - began


class Ours:
    """The engine process."""

    def __init__(self, spec: ModelSpec, photo: EncodedImage, spool: Path, threads: int) -> None:
        self._spec, self._photo = spec, photo
        setup = Setup(model=embedded_folder(), device="cpu", threads=threads, spool=spool)
        self.engine = LocalEngine("embedded", [setup])
        self._count = 0

    async def make(self, wish: Wish, seed: int) -> float:
        """Seconds until the picture is here."""
        self._count += 1
        side = self._spec.native_size or 64
        spec = self._spec
        request = ImageRequest(
            model="fluxserve/embedded",
            task=Task.EDIT if wish.is_edit else Task.TEXT_TO_IMAGE,
            prompt=wish.prompt,
            width=side,
            height=side,
            num_steps=wish.steps,
            guidance=spec.guidance_scale_edit if wish.is_edit else spec.guidance_scale,
            seed=seed,
        )
        job = Job(
            prediction_id=str(self._count),
            attempt=1,
            request=request,
            images=(self._photo,) if wish.is_edit else (),
            created_at=datetime.now(UTC),
        )
        began = time.perf_counter()
        async for update in self.engine.run(job):
            if isinstance(update, Output):
                found = time.perf_counter() - began
        return found


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    ours_s: Sequence[float]
    theirs_s: Sequence[float]

    @property
    def ratio(self) -> float:
        """How many times as long diffusers takes; the median over pairs of neighbours."""
        pairs = zip(self.theirs_s, self.ours_s, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def line(self) -> str:
        ours, theirs = statistics.median(self.ours_s), statistics.median(self.theirs_s)
        spread = statistics.quantiles(self.ours_s, n=4)
        return (
            f"{self.name:34s} {ours:8.3f} s {theirs:8.3f} s {self.ratio:7.2f}x"
            f"   (ours, quartiles {spread[0]:.3f} .. {spread[2]:.3f} s)"
        )


async def alone(ours: Ours, theirs: Theirs, wish: Wish, rounds: int) -> Result:
    mine, other = [], []
    for seed in range(rounds):
        mine.append(await ours.make(wish, seed))
        other.append(theirs.make(wish, seed))
    return Result(f"alone, {'edit' if wish.is_edit else 'text to image'}", mine, other)


async def together(ours: Ours, theirs: Theirs, wishes: Sequence[Wish], rounds: int) -> Result:
    """Mean latency of requests that all arrive at once."""
    mine, other = [], []
    for seed in range(rounds):
        mine.append(
            statistics.mean(await asyncio.gather(*(ours.make(wish, seed) for wish in wishes)))
        )
        finished, latencies = 0.0, []
        for wish in wishes:
            finished += theirs.make(wish, seed)
            latencies.append(finished)
        other.append(statistics.mean(latencies))
    return Result(f"{len(wishes)} mixed at once, mean latency", mine, other)


async def measure(rounds: int, steps: int, threads: int) -> list[Result]:
    spec = inspect(embedded_folder())
    photo = Image.radial_gradient("L").resize((spec.native_size or 64,) * 2).convert("RGB")
    theirs = Theirs(spec, photo, threads)
    with tempfile.TemporaryDirectory() as spool:
        ours = Ours(spec, encode(photo, OutputFormat.PNG), Path(spool), threads)
        await ours.engine.start()
        try:
            await ours.engine.wait_ready()
            wishes = mixture(steps)
            for wish in wishes[:2]:  # warm both sides up
                await ours.make(wish, 0)
                theirs.make(wish, 0)
            results = [await alone(ours, theirs, wish, rounds) for wish in wishes[:2]]
            results.append(await together(ours, theirs, wishes, rounds))
        finally:
            await ours.engine.stop()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=physical_cores())
    said = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results = asyncio.run(measure(said.rounds, said.steps, said.threads))
    print(f"{platform.processor() or platform.machine()}, {said.threads} threads, float32,")
    print(f"{inspect(embedded_folder()).name}, {said.steps} steps, {said.rounds} rounds")
    print(f"{'':34s} {'ours':>10s} {'diffusers':>10s} {'ratio':>8s}")
    for result in results:
        print(result.line())
    numbers = {
        result.name: {
            "ours_s": round(statistics.median(result.ours_s), 4),
            "diffusers_s": round(statistics.median(result.theirs_s), 4),
            "ratio": round(result.ratio, 3),
        }
        for result in results
    }
    print(json.dumps({"bench": "edit", "threads": said.threads, "results": numbers}))


if __name__ == "__main__":
    main()
