"""How an order will be made: at which size, from which references, in how many rows. No torch.

The server uses it to foresee what a request costs, the engine process to make it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fluxserve.core.errors import EngineError
from fluxserve.core.request import Task
from fluxserve.engines.local.cost import Shape
from fluxserve.engines.local.wire import Order
from fluxserve.flux.skips import REF_KV, SKIP, SKIPS_MIN, refresh_map, skip_map
from fluxserve.flux.spec import Guidance, ModelSpec

REFERENCES_MAX = 4
NO_ROWS = Shape(0, 0)
SIDE_MAX = 4096  # px; beyond that a single attention call would need tens of gigabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the pipeline will do for an order."""

    width: int  # px, at which the model works
    height: int  # px
    out_width: int  # px, of the finished picture
    out_height: int  # px
    is_spread: bool = False  # brought to that size by drawing its borders out, not by stretching
    references: tuple[tuple[int, int], ...]  # (width, height) in px, after resizing
    guidance: float
    num_steps: int
    first_step: int  # steps before it are left out: the start is a picture, not noise
    shape: Shape  # what one output brings into every forward
    reused: Shape = NO_ROWS  # likewise, where the references' keys and values are reused
    approximations: tuple[str, ...] = ()  # that are made use of
    notes: tuple[str, ...] = ()  # for the caller's log

    @property
    def steps(self) -> tuple[Shape, ...]:
        """One shape for each step that is run; an empty one where it is extrapolated."""
        count = self.num_steps - self.first_step
        computed = skip_map(count) if SKIP in self.approximations else (True,) * count
        refreshed = refresh_map(computed) if REF_KV in self.approximations else computed
        shapes = []
        for is_computed, is_refreshed in zip(computed, refreshed, strict=True):
            of_call = self.shape if is_refreshed else self.reused
            shapes.append(of_call if is_computed else NO_ROWS)
        return tuple(shapes)

    @property
    def calls_reusing(self) -> int:
        """In how many of its steps an output reuses its references."""
        return sum(shape == self.reused for shape in self.steps) if self.reused.rows else 0


def plan(spec: ModelSpec, order: Order) -> Plan:
    """Judge and lay out an order; EngineError names what this model cannot do."""
    task = Task(order.task)
    _check(spec, order, task)
    out_width, out_height = _output_size(order, task)
    width, height = _working_size(spec, out_width, out_height)
    references = _references(spec, order, task)
    guidance, notes = _guidance(spec, order)
    if (width, height) != (out_width, out_height):
        notes.append(
            f"Made at {width} x {height} px, brought to {out_width} x {out_height} px"
            if spec.native_size is None
            else f"{spec.name} works at {width} x {height} px;"
            f" the picture is enlarged to {out_width} x {out_height} px"
        )
    reads = sum(spec.tokens(w, h) for w, h in references)
    tokens = spec.text_tokens + spec.tokens(width, height) + reads
    rows = 2 if spec.guidance is Guidance.TRUE_CFG and guidance > 1 else 1
    first_step = _first_step(order, task)
    used = _approximations(order, steps=order.num_steps - first_step, reads=reads)
    return Plan(
        width=width,
        height=height,
        out_width=out_width,
        out_height=out_height,
        is_spread=spec.native_size is not None and task is Task.TEXT_TO_IMAGE,
        references=references,
        guidance=guidance,
        num_steps=order.num_steps,
        first_step=first_step,
        shape=Shape(rows * tokens, tokens),
        reused=Shape(rows * (tokens - reads), tokens) if REF_KV in used else NO_ROWS,
        approximations=used,
        notes=tuple(notes),
    )


def _check(spec: ModelSpec, order: Order, task: Task) -> None:
    if task in (Task.EDIT, Task.REDUX) and not spec.edits:
        raise EngineError(f"{spec.name} makes pictures from text and cannot read input images")
    if task is not Task.TEXT_TO_IMAGE and not order.sizes:
        raise EngineError("an input image is needed", field="images")
    if len(order.sizes) > REFERENCES_MAX:
        raise EngineError(
            f"images: at most {REFERENCES_MAX}, not {len(order.sizes)}", field="images"
        )
    if task is Task.FILL and not order.has_mask:
        raise EngineError("mask: needed to know what to repaint", field="mask")
    if task is Task.EXPAND and not order.margins:
        raise EngineError("margins: needed to know where the canvas grows")
    if order.num_steps < 1:
        raise EngineError(f"num_steps: at least 1, not {order.num_steps}", field="num_steps")


def _output_size(order: Order, task: Task) -> tuple[int, int]:
    if task not in (Task.FILL, Task.EXPAND):
        for name, side in (("width", order.width), ("height", order.height)):
            if not 1 <= side <= SIDE_MAX:
                raise EngineError(f"{name}: 1 to {SIDE_MAX} px, not {side}", field=name)
        return order.width, order.height
    width, height = order.sizes[0]
    _check_canvas("images", "a picture to repaint", width, height)
    if task is Task.EXPAND and order.margins:
        top, bottom, left, right = order.margins
        width, height = width + left + right, height + top + bottom
        _check_canvas("margins", "the grown canvas", width, height)
    return width, height


def _check_canvas(field: str, what: str, width: int, height: int) -> None:
    if min(width, height) < 1 or max(width, height) > SIDE_MAX:
        words = f"{field}: {what} has 1 to {SIDE_MAX} px a side, not {width} x {height}"
        raise EngineError(words, field=field)


def _working_size(spec: ModelSpec, width: int, height: int) -> tuple[int, int]:
    """Sides the model can make: whole tokens, or the one square that it knows."""
    if spec.native_size is not None:
        return spec.native_size, spec.native_size
    step = spec.pixels_per_token
    return max(step, width // step * step), max(step, height // step * step)


def _references(spec: ModelSpec, order: Order, task: Task) -> tuple[tuple[int, int], ...]:
    if not spec.edits or task in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE):
        return ()
    if task in (Task.FILL, Task.EXPAND):
        return (_reference_size(spec, *_output_size(order, task)),)
    return tuple(_reference_size(spec, width, height) for width, height in order.sizes)


def _reference_size(spec: ModelSpec, width: int, height: int) -> tuple[int, int]:
    if spec.native_size is not None:
        return spec.native_size, spec.native_size
    if spec.reference_sizes:
        ratio = width / height
        # The order of comparison is that of the reference pipeline: ratio, then the narrower one.
        _, best_width, best_height = min(
            (abs(ratio - w / h), w, h) for w, h in spec.reference_sizes
        )
        return best_width, best_height
    step = spec.pixels_per_token
    return max(step, width // step * step), max(step, height // step * step)


def _guidance(spec: ModelSpec, order: Order) -> tuple[float, list[str]]:
    """A small model that stands in for another keeps to its own scale."""
    if spec.native_size is None or order.model.endswith("/embedded"):
        return order.guidance, []
    own = spec.guidance_scale_edit if order.sizes else spec.guidance_scale
    if math.isclose(own, order.guidance):
        return own, []
    return own, [f"Guidance {order.guidance:g} is meant for {order.model}; {own:g} is used"]


def _approximations(order: Order, *, steps: int, reads: int) -> tuple[str, ...]:
    """Those of the allowed ones that this order has a use for."""
    useful = {SKIP: steps >= SKIPS_MIN, REF_KV: reads > 0 and steps > 1}
    return tuple(name for name in useful if useful[name] and name in order.approximations)


def _first_step(order: Order, task: Task) -> int:
    if task is not Task.IMAGE_TO_IMAGE:
        return 0
    # Rounded as the reference pipeline does it; but where that leaves no step, one is run.
    first = int(order.num_steps - order.num_steps * order.strength)
    return max(0, min(first, order.num_steps - 1))
