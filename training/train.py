"""Train the transformer and text encoders by flow matching; resumable, on CPU or CUDA.

    python -m training.train --config training/configs/cpu-128.json --minutes 80 --workers 2
    python -m training.train ... --resume          goes on from .training/<name>.pt
    python -m training.train ... --resume --minutes 15 --decay 1      a last, slowing stretch
    touch .training/<name>.stop                    saves and ends after the step in hand
    touch .training/<name>.decay                   starts the final decay of the learning rate now

Each CPU worker is one process with one thread; their gradients are averaged.
"""

import argparse
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from training import config as configs
from training.data import WORK, load
from training.effects import EFFECTS, MOVES
from training.lessons import guess, lesson, levels, own_rows
from training.model import TOKEN, Model, extend_tokenizer, new_words, pack
from training.optimizer import Optimizer
from training.scenes import Batch, Scenes, Size
from training.sheet import draw
from training.vae import encode, load_vae

log = logging.getLogger(__name__)

CHECKPOINT: Final = Path("src/fluxserve/flux/embedded/checkpoint")
SAVE_EVERY_S: Final = 240.0
CHECK_EVERY_S: Final = 1500.0
CHECK_COUNT: Final = 40
CANVAS: Final[Size] = (128, 128)


@dataclass(frozen=True)
class Options:
    config: Path
    work: Path
    minutes: float
    workers: int
    resume: bool
    scale: float
    start: Path
    decay: float | None
    compile: bool


def draw_group(scenes: Scenes, group: configs.Group, scale: float) -> tuple[Batch, Size]:
    """The samples of one group for one step."""
    count = max(1, round(group.count * scale))
    size = scenes.random.choices(group.sizes, group.size_weights)[0]
    match group.task:
        case "text":
            return scenes.text(count, size), size
        case "edit":
            kinds = None if size[0] == size[1] else [k for k in scenes.mix.kinds if k != "rotate"]
            return scenes.edits(scenes.kinds(count, kinds), size), size
        case "crop":
            local = [kind for kind in EFFECTS if kind not in MOVES]
            whole = scenes.edits(scenes.kinds(count, local), CANVAS)
            assert whole.source is not None
            top, left = (16 * scenes.random.randrange((128 - size[0]) // 16 + 1) for _ in range(2))
            cut = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            return Batch(whole.prompts, whole.examples, whole.target[cut], whole.source[cut]), size
    raise ValueError(f"groups.task: text, edit or crop, not {group.task}")


class Trainer:
    """One worker's model, data stream and optimiser. Worker 0 also saves, measures and draws."""

    def __init__(self, options: Options, rank: int) -> None:
        self.options, self.rank = options, rank
        self.config = configs.read(options.config)
        if options.decay is not None:
            self.config = replace(self.config, decay=options.decay)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.path = options.work / f"{self.config.name}.pt"
        torch.manual_seed(self.config.seed)
        bank = load(options.work)
        self.bank = bank
        tokenizers = options.work / "tokenizers"
        if rank == 0 and not tokenizers.exists():
            shipped = options.start
            extend_tokenizer(shipped / "tokenizer_2", tokenizers / "tokenizer_2", new_words(bank))
            shutil.copytree(shipped / "tokenizer", tokenizers / "tokenizer")
        if options.workers > 1:
            dist.barrier()
        self.model = Model(options.start, tokenizers).to(self.device)
        self.vae, matrix = load_vae(options.work, options.start)
        self.matrix = matrix.to(self.device)
        if options.compile:
            self.model.compile_for([group.sizes[0] for group in self.config.groups])
        named = list(self.model.named_parameters())
        self.parameters = [p for _, p in named]
        self.optimizer = Optimizer(named, self.config.weight_decay)
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seen = 0, 0
        if options.resume:
            self.restore(torch.load(self.path, weights_only=True, map_location=self.device))
        seed = self.config.seed + 1000 * rank + 7919 * self.step
        self.scenes = Scenes(bank, self.config.mix, seed, self.device)
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.checks = self.fixed_checks() if rank == 0 else []

    # --- state --------------------------------------------------------------------------------

    def restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for mine, saved in zip(self.parameters, state["raw"], strict=True):
                mine.copy_(saved)
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seen = state["step"], state["seen"]

    def save(self) -> None:
        state = {
            "raw": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seen": self.seen,
            "config": self.config.to_json(),
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.path)

    def swap(self) -> None:
        """Exchange the weights in training and their running average."""
        with torch.no_grad():
            for mine, other in zip(self.parameters, self.average, strict=True):
                kept = mine.detach().clone()
                mine.copy_(other)
                other.copy_(kept)

    # --- one step -----------------------------------------------------------------------------

    def loss(
        self, batch: Batch, size: Size, level: Tensor, noise: Tensor, own: Sequence[int] = ()
    ) -> Tensor:
        """Squared error of the velocity, mean over the batch.

        The samples at `own` hold, under the noise, what the model itself makes of pure noise, not
        the exact picture: so it learns to mend its own guess, which is all its sampler has. A
        guess gets no better as the noise falls, while the velocity that mends it grows by the
        level's inverse: weighing its square by the level keeps every level's part in sight.
        """
        target = pack(encode(batch.target * 2 - 1, self.matrix))
        source = batch.source
        reference = None if source is None else pack(encode(source * 2 - 1, self.matrix))
        text = self.model.text(batch.prompts)
        at, weight = level[:, None, None], torch.ones_like(level)[:, None, None]
        start = target.clone()
        if own:
            assert reference is not None
            rows = list(own)
            weight[rows] = at[rows]
            said = (text[0][rows], text[1][rows])
            drawn = self.scenes.random
            start[rows] = guess(
                self.model, drawn, at[rows], noise[rows], said, size, reference[rows]
            )
        noisy, wanted = lesson(start, target, at, noise)
        got = self.model.velocity(noisy, at[:, 0, 0], text, size, reference)
        return ((got.float() - wanted).pow(2) * weight).mean()

    def group_loss(self, group: configs.Group) -> Tensor:
        batch, size = draw_group(self.scenes, group, self.options.scale)
        drop = self.config.prompt_dropout
        prompts = ["" if self.scenes.random.random() < drop else p for p in batch.prompts]
        batch = Batch(prompts, batch.examples, batch.target, batch.source)
        tokens = size[0] * size[1] // 256
        noise = torch.randn(len(prompts), tokens, TOKEN, generator=self.noise, device=self.device)
        self.seen += len(prompts) * self.options.workers
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device == "cuda"):
            own = own_rows(batch, self.config.own_share)
            level = levels(self.noise, len(prompts), self.config.early_share, own)
            return self.loss(batch, size, level, noise, own)

    def share_gradients(self) -> None:
        """Average the gradients of all workers."""
        if self.options.workers == 1:
            return
        flat = torch.cat(
            [
                (p.grad if p.grad is not None else torch.zeros_like(p)).flatten()
                for p in self.parameters
            ]
        )
        dist.all_reduce(flat)
        flat /= self.options.workers
        at = 0
        for p in self.parameters:
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()

    def rate(self, done: float) -> float:
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        return self.config.rate * warm * min(1.0, max(0.01, (1 - done) / self.config.decay))

    def update(self, done: float) -> list[float]:
        """One optimiser step; the loss of each group."""
        for p in self.parameters:
            p.grad = None
        errors = []
        for group in self.config.groups:
            error = self.group_loss(group)
            torch.autograd.backward(error * group.weight)
            errors.append(error.item())
        self.share_gradients()
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step(self.rate(done))
        self.step += 1
        keep = min(self.config.average, (1 + self.step) / (12 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
        return errors

    # --- the run ------------------------------------------------------------------------------

    def fixed_checks(self) -> list[tuple[str, Batch, Tensor, Tensor]]:
        """The same pictures, noise and levels at every measurement."""
        scenes = Scenes(self.bank, self.config.mix, seed=424242)
        noise = torch.Generator().manual_seed(9)
        level = torch.sigmoid(torch.special.ndtri((torch.arange(CHECK_COUNT) + 0.5) / CHECK_COUNT))
        pool = [k for k, w in self.config.mix.kinds.items() if w > 0]
        kinds = [pool[i % len(pool)] for i in range(CHECK_COUNT)]
        batches = {"text": scenes.text(CHECK_COUNT, CANVAS), "edit": scenes.edits(kinds, CANVAS)}
        return [
            (name, batch, level, torch.randn(CHECK_COUNT, 64, TOKEN, generator=noise))
            for name, batch in batches.items()
        ]

    @torch.no_grad()
    def check(self) -> None:
        """Log the averaged model's loss on the fixed pictures and draw a sheet."""
        self.swap()
        self.model.eval()
        marks = {}
        for name, batch, level, noise in self.checks:
            source = None if batch.source is None else batch.source.to(self.device)
            there = Batch(batch.prompts, batch.examples, batch.target.to(self.device), source)
            error = self.loss(there, CANVAS, level.to(self.device), noise.to(self.device))
            marks[name] = round(float(error), 4)
        log.info("CHECK step %d seen %d %s", self.step, self.seen, marks)
        sheets = self.options.work / "sheets"
        sheets.mkdir(exist_ok=True)
        self.vae, matrix = load_vae(self.options.work, self.options.start)
        draw(self.model, self.bank, self.vae, matrix.cpu(), sheets / f"{self.step:06d}.png")
        self.model.train()
        self.swap()

    def flag(self, name: str) -> bool:
        return self.path.with_suffix(f".{name}").exists()

    def clock(self, begin: float, values: list[float]) -> tuple[float, bool]:
        """(share of the run done, whether to stop), the same for every worker."""
        done = (time.monotonic() - begin) / (60 * self.options.minutes)
        if self.rank == 0 and self.flag("decay"):
            decay = self.config.decay
            if not values:
                values.append(done)
            left = min(1 - values[0], decay) if values[0] < 1 - decay else 1 - values[0]
            done = 1 - decay + (done - values[0]) * decay / max(left, 1e-6)
        told = torch.tensor([done, float(done >= 1 or self.flag("stop"))])
        if self.options.workers > 1:
            dist.broadcast(told, 0)
        return float(told[0]), bool(told[1])

    def run(self) -> None:
        begin = saved = checked = time.monotonic()
        first, decay_began, smooth = self.seen, list[float](), list[float]()
        while True:
            done, stop = self.clock(begin, decay_began)
            if stop:
                break
            errors = self.update(done)
            smooth = [0.97 * a + 0.03 * b for a, b in zip(smooth or errors, errors, strict=True)]
            now = time.monotonic()
            if self.rank == 0 and self.step % 25 == 0:
                speed = (self.seen - first) / (now - begin)
                told = " ".join(f"{e:.4f}" for e in smooth)
                log.info(
                    "%d %.0f %% %s rate %.1e %.1f/s",
                    self.step,
                    100 * done,
                    told,
                    self.rate(done),
                    speed,
                )
            if self.rank == 0 and now - saved > SAVE_EVERY_S:
                saved = now
                self.save()
            if self.rank == 0 and now - checked > CHECK_EVERY_S:
                checked = now
                self.check()
        if self.rank == 0:
            self.save()
            self.check()


def worker(rank: int, options: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if options.workers > 1:
        meet = (options.work / "meet").absolute()
        dist.init_process_group(
            "gloo", init_method=f"file://{meet}", rank=rank, world_size=options.workers
        )
    Trainer(options, rank).run()
    if options.workers > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("training/configs/cpu-128.json"))
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="times the samples of a step")
    parser.add_argument("--start", type=Path, default=CHECKPOINT)
    parser.add_argument("--compile", action="store_true", help="a quarter faster, after minutes")
    parser.add_argument("--decay", type=float, help="share of the run with a falling rate")
    options = Options(**vars(parser.parse_args()))
    assert math.isfinite(options.minutes)
    (options.work / "meet").unlink(missing_ok=True)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if options.workers == 1:
        worker(0, options)
    else:
        spawn(worker, (options,), options.workers)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
