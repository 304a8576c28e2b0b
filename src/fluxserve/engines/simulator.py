"""The simulator: scripted answers for people who test their applications, and for our own tests.

What it does is set by the settings, and for one request by a directive in its prompt:
`a fox [[outcome=fail seconds=0.5 steps=4 error="out of foxes"]]`. Pictures have the size and format
asked for and are drawn from prompt and seed alone, so the same request gives the same bytes.
"""

import asyncio
import hashlib
import random
import re
import shlex
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from enum import StrEnum

from PIL import Image, ImageDraw

from fluxserve.core.errors import EngineError, InputRefused, OutputRefused
from fluxserve.core.ports import (
    EncodedImage,
    EngineUpdate,
    Job,
    Log,
    Output,
    Preview,
    Progress,
    Report,
)
from fluxserve.core.request import ImageRequest, OutputFormat
from fluxserve.images.codec import encode

UNLIMITED = 100_000
HOLD = "simulator.hold"  # an engine that nobody feeds: what is queued there stays queued
PREVIEW_SIDE = 128  # px

_DIRECTIVE = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


class Outcome(StrEnum):
    SUCCEED = "succeed"
    FAIL = "fail"
    REFUSE_INPUT = "refuse_input"
    REFUSE_OUTPUT = "refuse_output"
    HOLD = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How simulated runs go."""

    seconds: float = 2.0
    steps: int = 10
    outcome: Outcome = Outcome.SUCCEED
    error: str = "the simulator was told to fail"

    def told(self, prompt: str) -> "Script":
        """This script with the directives of a prompt; EngineError for one that makes no sense."""
        script = self
        for text in _DIRECTIVE.findall(prompt):
            try:
                words = shlex.split(text)
            except ValueError as error:
                raise EngineError(f"simulator directive: {error}", field="prompt") from None
            for word in words:
                script = script._with(*word.partition("=")[::2])
        return script

    def _with(self, name: str, value: str) -> "Script":
        try:
            match name:
                case "seconds":
                    return replace(self, seconds=min(max(float(value), 0.0), 3600.0))
                case "steps":
                    return replace(self, steps=min(max(int(value), 1), 1000))
                case "outcome":
                    return replace(self, outcome=Outcome(value))
                case "error":
                    return replace(self, error=value)
        except ValueError:
            raise EngineError(
                f"simulator directive {name}: not {value!r}", field="prompt"
            ) from None
        known = "seconds, steps, outcome and error"
        raise EngineError(f"simulator directives are {known}, not {name!r}", field="prompt")


class Simulator:
    """An engine without a model."""

    name = "simulator"

    def __init__(self, script: Script, *, concurrency: int = 0) -> None:
        self._script = script
        self.capacity = concurrency or UNLIMITED

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    @property
    def trouble(self) -> str | None:
        return None

    def place(self, request: ImageRequest) -> str:
        """The queue a request belongs in: a held one waits where nobody claims."""
        try:
            script = self._script.told(request.prompt)
        except EngineError:
            return self.name  # the run will say what is wrong with the directive
        return HOLD if script.outcome is Outcome.HOLD else self.name

    def estimate(self, request: ImageRequest) -> float | None:
        return self._script.seconds

    async def run(self, job: Job) -> AsyncGenerator[EngineUpdate, None]:
        script = self._script.told(job.request.prompt)
        yield Log(text="Simulated run: no model is at work")
        if script.outcome is Outcome.REFUSE_INPUT:
            raise InputRefused("The input was flagged as sensitive (NSFW content). (E005)")
        pause = script.seconds / script.steps
        yield Progress(step=0, total=script.steps, eta_s=script.seconds)
        for step in range(1, script.steps + 1):
            await asyncio.sleep(pause)
            yield Progress(step=step, total=script.steps, eta_s=pause * (script.steps - step))
            every = job.request.preview_steps
            if every and step % every == 0 and step < script.steps:
                yield Preview(image=await asyncio.to_thread(_preview, job, step), step=step)
        if script.outcome is Outcome.FAIL:
            raise EngineError(script.error)
        if script.outcome is Outcome.REFUSE_OUTPUT:
            raise OutputRefused("NSFW content was found in the result. (E005)")
        for index in range(job.request.num_outputs):
            seed = (job.request.seed + index) % 2**32
            image = await asyncio.to_thread(_picture, job.request, seed)
            yield Output(index=index, image=image, seed=seed)
        yield Report(metrics={"simulated": True}, served_by="fluxserve/simulator")


def _picture(request: ImageRequest, seed: int) -> EncodedImage:
    drawn = draw(request.prompt, seed, request.width or 1024, request.height or 1024)
    return encode(drawn, request.output_format, request.output_quality)


def _preview(job: Job, step: int) -> EncodedImage:
    request = job.request
    scale = PREVIEW_SIDE / max(request.width or 1024, request.height or 1024)
    width = max(1, round((request.width or 1024) * scale))
    height = max(1, round((request.height or 1024) * scale))
    drawn = draw(f"{request.prompt} {step}", request.seed, width, height)
    return encode(drawn, OutputFormat.JPEG, 70)


def draw(prompt: str, seed: int, width: int, height: int) -> Image.Image:
    """Coloured shapes that depend on prompt and seed alone."""
    digest = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
    dice = random.Random(digest)
    top, bottom = (tuple(dice.randrange(256) for _ in range(3)) for _ in range(2))
    column = Image.new("RGB", (1, 2))
    column.putdata([top, bottom])
    image = column.resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = dice.randrange(width), dice.randrange(height)
        radius = dice.randrange(1, max(2, min(width, height) // 4))
        colour = tuple(dice.randrange(256) for _ in range(3))
        box = (x - radius, y - radius, x + radius, y + radius)
        shape = pen.ellipse if dice.random() < 0.5 else pen.rectangle
        shape(box, fill=colour)
    return image
