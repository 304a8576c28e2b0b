"""A picture on its way from noise: begin, advance together with others, finish.

prompt, references, size, seed ── begin ──> Sample ── advance, num_steps times ──> finish ── pixels
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fluxserve.flux import packed, packing, schedule
from fluxserve.flux.autoencoder import to_pixels
from fluxserve.flux.memory import Memory
from fluxserve.flux.prepare import Adapter, Prepared, prepare, rotation
from fluxserve.flux.preview import preview
from fluxserve.flux.skips import FP8, REF_KV, SKIP, refresh_map, skip_map
from fluxserve.flux.spec import Guidance
from fluxserve.flux.weights import Model


class NotANumber(Exception):
    """Values that are no numbers came out; `samples` are the places of the culprits."""

    def __init__(self, samples: Sequence[int]) -> None:
        super().__init__(f"not a number in {len(samples)} of the samples")
        self.samples = tuple(samples)


@dataclass(frozen=True, slots=True, eq=False)
class Repaint:
    """A picture of which only a part is made anew, or that the denoising starts from."""

    latents: Tensor  # (height * width, in_channels) of the picture that is there
    mask: Tensor | None  # likewise, 1 where it is repainted, 0 where it is kept; None: no mask


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What the pictures of one request are made from."""

    height: int  # tokens
    width: int  # tokens
    sigmas: Tensor  # (num_steps + 1,) float32, on the CPU
    prompted: Prepared
    unprompted: Prepared | None  # the second row of true classifier-free guidance
    guidance: float
    repaint: Repaint | None = None
    computed: tuple[bool, ...] = ()  # by step; others are extrapolated. Empty: all are computed
    refreshed: tuple[bool, ...] = ()  # by step; others reuse references. Empty: nothing is reused
    is_coarse: bool = False  # large linears in 8 bits, where the model has them in both forms


@dataclass(slots=True, eq=False)
class Sample:
    """One picture: what it is made from, and how far it is. A step replaces `latents` whole."""

    condition: Condition
    noise: Tensor  # (height * width, in_channels), in the dtype of the model
    latents: Tensor  # likewise
    step: int = 0  # how many are done
    velocity: Tensor | None = None  # of the last step
    computed_at: int = 0  # the step of the last velocity that was computed
    slope_from: tuple[Tensor, int] | None = None  # the computed velocity before it, and its step
    memories: tuple[Memory, Memory] = field(default_factory=lambda: (Memory(), Memory()))

    @property
    def num_steps(self) -> int:
        return len(self.condition.sigmas) - 1

    @property
    def is_done(self) -> bool:
        return self.step >= self.num_steps


def noise(model: Model, height: int, width: int, seed: int) -> Tensor:
    """(height * width, in_channels): the same for a seed on every device; height, width in tokens.

    Drawn on the CPU in the model's dtype, in the order in which diffusers draws it.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    channels = model.spec.autoencoder.latent_channels
    shape = (channels, 2 * height, 2 * width)
    drawn = torch.randn(shape, generator=generator, dtype=model.dtype)
    return packing.pack(drawn).to(model.device)


@torch.inference_mode()
def condition(
    model: Model,
    *,
    prompt: str,
    negative_prompt: str = "",
    width: int,
    height: int,
    num_steps: int,
    guidance: float,
    references: Sequence[Tensor] = (),
    adapters: Sequence[Adapter] = (),
    repaint: Repaint | None = None,
    first_step: int = 0,
    approximations: Collection[str] = (),
) -> Condition:
    """Prepare pictures of width x height px, multiples of `pixels_per_token`.

    `references` are latents as `Autoencoder.encode` makes them, (C, H, W) with even H and W. With
    `first_step` the denoising starts there, from the picture of `repaint` instead of pure noise.
    Of `approximations` "skip" computes only the steps of `skip_map`, "ref_kv" the references only
    in those of `refresh_map`, and "fp8" takes the 8-bit linears of a model that keeps both forms.
    """
    spec = model.spec
    rows, columns = height // spec.pixels_per_token, width // spec.pixels_per_token
    sigmas = schedule.sigmas(num_steps, rows * columns, spec.schedule)[first_step:]
    sizes = [(latents.shape[1] // 2, latents.shape[2] // 2) for latents in references]
    packed_references = torch.cat([packing.pack(x) for x in references]) if references else None

    positions = torch.cat(
        [
            packing.text_positions(spec.text_tokens),
            packing.grid_positions(rows, columns),
            packing.reference_positions(sizes),
        ]
    )
    turns = model.rotations.get(
        (rows, columns, *sizes),
        lambda: rotation(positions, spec.transformer.axes_dims_rope).to(model.device),
    )

    def row(text: str) -> Prepared:
        embedding = model.text.encode(text)
        return prepare(
            model.transformer,
            text=embedding.tokens,
            pooled=embedding.pooled,
            positions=positions,
            sigmas=sigmas[:-1],
            guidance=guidance if spec.guidance is Guidance.EMBEDDED else None,
            reference=packed_references,
            adapters=adapters,
            turns=turns,
        )

    count = len(sigmas) - 1
    computed = skip_map(count) if SKIP in approximations else (True,) * count
    reuses = REF_KV in approximations and packed_references is not None
    away = spec.guidance is Guidance.TRUE_CFG and guidance > 1.0
    return Condition(
        height=rows,
        width=columns,
        sigmas=sigmas,
        prompted=row(prompt),
        unprompted=row(negative_prompt) if away else None,
        guidance=guidance,
        repaint=repaint,
        computed=computed if SKIP in approximations else (),
        refreshed=refresh_map(computed) if reuses else (),
        is_coarse=FP8 in approximations,
    )


@torch.inference_mode()
def begin(model: Model, condition: Condition, seed: int) -> Sample:
    """A picture before its first step."""
    drawn = noise(model, condition.height, condition.width, seed)
    latents, first = drawn, condition.sigmas[0]
    if condition.repaint is not None and first < 1.0:
        latents = schedule.noised(condition.repaint.latents, drawn, first)
    return Sample(condition=condition, noise=drawn, latents=latents)


@torch.inference_mode()
def advance(model: Model, samples: Sequence[Sample]) -> None:
    """One noise level down for each of `samples`, in one forward pass.

    Levels that a sample extrapolates are taken with it. All of them move or none does: where
    NotANumber or a device error is raised, every sample is as it was before, and the step can be
    tried again with fewer.
    """
    velocities = _velocities(model, samples)
    finite = torch.stack([velocity.isfinite().all() for velocity in velocities]).tolist()
    if not all(finite):
        raise NotANumber([at for at, good in enumerate(finite) if not good])
    moved = [_moved(s, s.step, s.latents, v) for s, v in zip(samples, velocities, strict=True)]
    for sample, latents, velocity in zip(samples, moved, velocities, strict=True):
        if sample.condition.computed and sample.velocity is not None and sample.step > 0:
            sample.slope_from = (sample.velocity, sample.computed_at)
        sample.latents, sample.velocity = latents, velocity
        sample.computed_at = sample.step
        sample.step += 1
        _extrapolate(sample)
        if sample.is_done:
            sample.memories = (Memory(), Memory())


def _extrapolate(sample: Sample) -> None:
    """Take the levels that follow a computed one and are not computed themselves."""
    condition = sample.condition
    while condition.computed and not sample.is_done and not condition.computed[sample.step]:
        assert sample.velocity is not None
        assert sample.slope_from is not None
        before, at_before = sample.slope_from
        velocity = schedule.extrapolated(
            sample.velocity,
            before,
            condition.sigmas[sample.computed_at],
            condition.sigmas[at_before],
            condition.sigmas[sample.step],
        )
        sample.latents = _moved(sample, sample.step, sample.latents, velocity)
        sample.step += 1


def _moved(sample: Sample, step: int, latents: Tensor, velocity: Tensor) -> Tensor:
    """The latents one level down; outside of a mask, the picture that is there."""
    sigma, following = sample.condition.sigmas[step : step + 2]
    latents = schedule.euler(latents, velocity, sigma, following)
    repaint = sample.condition.repaint
    if repaint is None or repaint.mask is None:
        return latents
    there = schedule.noised(repaint.latents, sample.noise, following)
    return there + repaint.mask * (latents - there)


def _velocities(model: Model, samples: Sequence[Sample]) -> list[Tensor]:
    rows = []
    for sample in samples:
        refreshed = sample.condition.refreshed
        both = (sample.condition.prompted, sample.condition.unprompted)
        for prepared, memory in zip(both, sample.memories, strict=True):
            if prepared is None:
                continue
            rows.append(
                packed.Row(
                    prepared,
                    sample.latents,
                    sample.step,
                    memory=memory if refreshed else None,
                    reuses=bool(refreshed) and not refreshed[sample.step],
                    is_coarse=sample.condition.is_coarse,
                )
            )
    found = iter(packed.forward(model.transformer, rows))
    velocities = []
    for sample in samples:
        velocity = next(found)
        if sample.condition.unprompted is not None:
            without = next(found)
            velocity = without + sample.condition.guidance * (velocity - without)
        velocities.append(velocity)
    return velocities


def glimpse(model: Model, sample: Sample) -> Tensor | None:
    """(2 height, 2 width, 3) uint8: the picture by now; None before a step or without factors."""
    if model.spec.preview is None or sample.velocity is None:
        return None
    # Latents have moved on along the velocity, so the same line still leads to the clean picture.
    condition = sample.condition
    clean = schedule.clean(sample.latents, sample.velocity, condition.sigmas[sample.step])
    return preview(packing.unpack(clean, condition.height, condition.width), model.spec.preview)


@torch.inference_mode()
def finish(model: Model, sample: Sample) -> Tensor:
    """(H, W, 3) uint8 on the CPU; NotANumber where decoding leaves the range of the number type."""
    latents = packing.unpack(sample.latents, sample.condition.height, sample.condition.width)
    picture = model.autoencoder.decode(latents)
    if not picture.isfinite().all():
        raise NotANumber([0])
    return to_pixels(picture)


@torch.inference_mode()
def rehearse(model: Model, lengths: Sequence[int]) -> float:
    """Seconds of one forward over random rows, one for each length in tokens (2 or more)."""
    spec = model.spec
    channels, width = spec.transformer.in_channels, spec.transformer.joint_attention_dim

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=model.dtype, device=model.device)

    rows = []
    for length in lengths:
        text = min(spec.text_tokens, length // 2)
        places = [packing.text_positions(text), packing.grid_positions(1, length - text)]
        prepared = prepare(
            model.transformer,
            text=draw(text, width),
            pooled=draw(spec.transformer.pooled_projection_dim),
            positions=torch.cat(places),
            sigmas=torch.tensor([0.5]),
            guidance=1.0 if spec.guidance is Guidance.EMBEDDED else None,
        )
        rows.append(packed.Row(prepared, draw(length - text, channels), 0))
    began = time.perf_counter()
    float(packed.forward(model.transformer, rows)[0].sum())  # reading it waits for the device
    return time.perf_counter() - began
