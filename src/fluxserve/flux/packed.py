"""One forward pass for requests of any size, noise level, guidance, text length and references.

No padding, no mask: the rows of all requests lie one after another, every linear sees them all, and
attention runs request by request (requests of equal lengths share a call).

    text   t0 t1 ..        ─ double blocks ─┐    one sequence per request
    image  x0 r0 x1 r1 ..  ─ double blocks ─┴─> [t0 x0 r0] [t1 x1 r1] ─ single blocks ─> x0 x1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fluxserve.flux import kernels
from fluxserve.flux.memory import Memory
from fluxserve.flux.modules import DoubleBlock, FluxTransformer, SingleBlock, Stream
from fluxserve.flux.prepare import Adapter, Prepared
from fluxserve.flux.quantize import TwinLinear


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A prepared row and where it is now."""

    prepared: Prepared
    latents: Tensor  # (L, in_channels), the picture being made, in the dtype of the model
    step: int  # which of the prepared noise levels
    memory: Memory | None = None  # where this pass leaves the references' keys and values ...
    reuses: bool = False  # ... or takes them from, so that their tokens do not run
    is_coarse: bool = False  # large linears in 8 bits, where the model has them in both forms


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of equal lengths: a rectangle in every layout."""

    count: int
    text: int  # tokens of each, likewise below
    picture: int
    reference: int
    kept: int  # tokens of references that do not run: their keys and values are remembered
    text_start: int  # first token in the text stream
    image_start: int  # first token in the image stream
    picture_start: int  # first token where only the pictures being made are left

    @property
    def image(self) -> int:
        return self.picture + self.reference

    @property
    def length(self) -> int:
        return self.text + self.picture + self.reference

    def in_text(self, x: Tensor) -> Tensor:
        """(N, ..) -> (count, text, ..), likewise below."""
        return _rectangle(x, self.text_start, self.count, self.text)

    def in_image(self, x: Tensor) -> Tensor:
        return _rectangle(x, self.image_start, self.count, self.image)

    def in_joint(self, x: Tensor) -> Tensor:
        return _rectangle(x, self.text_start + self.image_start, self.count, self.length)

    def in_pictures(self, x: Tensor) -> Tensor:
        return _rectangle(x, self.picture_start, self.count, self.picture)


def _rectangle(x: Tensor, start: int, count: int, length: int) -> Tensor:
    return torch.unflatten(x[start : start + count * length], 0, (count, length))


@dataclass(frozen=True, slots=True)
class Patch:
    """An adapter and the tokens it works on, as (start, end) per layout."""

    adapter: Adapter
    text: tuple[int, int]
    image: tuple[int, int]
    joint: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows of one pass lie, and what modulates them."""

    spans: Sequence[Span]
    modulation: Sequence[Tensor]  # by span: (parts of all blocks, count, 1, width)
    parts: Mapping[str, slice]  # which of them are those of a block
    rotation: Sequence[Tensor]  # by span: (count, length, 1, 1, head_dim / 2)
    memories: Sequence[Sequence[Memory | None]]  # by span, by member
    patches: Sequence[Patch]
    exact: Mapping[str, int]  # by layout: its first tokens, whose linears are not in 8 bits

    def of(self, name: str) -> Sequence[Tensor]:
        """The modulation of one block, by span: (parts, count, 1, width)."""
        part = self.parts[name]
        return [modulation[part] for modulation in self.modulation]

    @property
    def text_tokens(self) -> int:
        return sum(span.count * span.text for span in self.spans)

    @property
    def tokens(self) -> int:
        return sum(span.count * span.length for span in self.spans)


def forward(model: FluxTransformer, rows: Sequence[Row]) -> list[Tensor]:
    """The velocity of every row, (L, in_channels) each, in the order given."""
    # Those in 8 bits last: the tokens of either kind lie together in every layout.
    order = sorted(range(len(rows)), key=lambda at: _kind(rows[at]))
    ordered = [rows[at] for at in order]
    plan = _plan(ordered, model.parts)
    text, image = _streams(model, ordered)
    for at, block in enumerate(model.doubles):
        assert isinstance(block, DoubleBlock)
        _double(block, f"doubles.{at}", plan, text, image)
    joint = _join(plan, text, image)
    last = len(model.singles) - 1
    for at, single in enumerate(model.singles):
        assert isinstance(single, SingleBlock)
        if at < last:
            _single(single, f"singles.{at}", plan, joint)
        else:
            joint = _last_single(single, f"singles.{at}", plan, joint)
    return _velocities(model, plan, joint, order)


# --- layout -------------------------------------------------------------------------------------


def _lengths(row: Row) -> tuple[int, int, int, int]:
    """Tokens of text, picture and references that run, and of references that do not."""
    prepared = row.prepared
    references = prepared.reference.shape[0]
    runs, kept = (0, references) if row.reuses else (references, 0)
    return prepared.text.shape[0], row.latents.shape[0], runs, kept


def _kind(row: Row) -> tuple[bool, tuple[int, int, int, int]]:
    """Rows of one kind share a span."""
    return row.is_coarse, _lengths(row)


def _exact(rows: Sequence[Row]) -> Mapping[str, int]:
    text = image = 0
    for row in rows:
        if not row.is_coarse:
            of_text, picture, reference, _ = _lengths(row)
            text, image = text + of_text, image + picture + reference
    return {"text": text, "image": image, "joint": text + image}


def _plan(rows: Sequence[Row], parts: Mapping[str, slice]) -> Plan:
    """Lay out `rows`, which are sorted by their kinds."""
    spans: list[Span] = []
    turns: list[Tensor] = []
    modulation: list[Tensor] = []
    memories: list[Sequence[Memory | None]] = []
    cuts = [i for i in range(1, len(rows)) if _kind(rows[i]) != _kind(rows[i - 1])]
    text = image = pictures = 0
    for start, end in pairwise([0, *cuts, len(rows)]):
        members = rows[start:end]
        span = Span(len(members), *_lengths(members[0]), text, image, pictures)
        spans.append(span)
        memories.append([row.memory for row in members])
        rotations = [row.prepared.rotation[: span.length] for row in members]
        turns.append(_stack(rotations)[:, :, None, None])
        levels = [row.prepared.modulation[row.step] for row in members]
        modulation.append(_stack(levels, dim=1)[:, :, None])
        text, image = text + span.count * span.text, image + span.count * span.image
        pictures += span.count * span.picture
    return Plan(spans, modulation, parts, turns, memories, _patches(rows), _exact(rows))


def _stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0].unsqueeze(dim) if len(parts) == 1 else torch.stack(list(parts), dim=dim)


def _patches(rows: Sequence[Row]) -> Sequence[Patch]:
    found = []
    text = image = 0
    for row in rows:
        of_text, picture, reference, _ = _lengths(row)
        text_end, image_end = text + of_text, image + picture + reference
        places = ((text, text_end), (image, image_end), (text + image, text_end + image_end))
        found += [Patch(adapter, *places) for adapter in row.prepared.adapters]
        text, image = text_end, image_end
    return found


def _streams(model: FluxTransformer, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Fresh tensors that the blocks work on in place."""
    latents = [row.latents for row in rows]
    pictures = model.image_in(latents[0] if len(latents) == 1 else torch.cat(latents))
    parts: list[Tensor] = []
    for row, picture in zip(rows, pictures.split([len(x) for x in latents]), strict=True):
        parts += [picture] if row.reuses else [picture, row.prepared.reference]
    return torch.cat([row.prepared.text for row in rows]), torch.cat(parts)


def _join(plan: Plan, text: Tensor, image: Tensor) -> Tensor:
    """Text and image rows of a request side by side."""
    if len(plan.spans) == 1:
        (span,) = plan.spans
        return torch.cat([span.in_text(text), span.in_image(image)], dim=1).flatten(0, 1)
    joint = text.new_empty(plan.tokens, *text.shape[1:])
    for span in plan.spans:
        place = span.in_joint(joint)
        place[:, : span.text].copy_(span.in_text(text))
        place[:, span.text :].copy_(span.in_image(image))
    return joint


def _part(plan: Plan, joint: Tensor) -> tuple[Tensor, Tensor]:
    """The opposite of `_join`."""
    text = joint.new_empty(plan.text_tokens, *joint.shape[1:])
    image = joint.new_empty(plan.tokens - plan.text_tokens, *joint.shape[1:])
    for span in plan.spans:
        place = span.in_joint(joint)
        span.in_text(text).copy_(place[:, : span.text])
        span.in_image(image).copy_(place[:, span.text :])
    return text, image


def _pictures(plan: Plan, joint: Tensor) -> Tensor:
    """Only the tokens of the pictures being made."""
    parts = [
        span.in_joint(joint)[:, span.text : span.text + span.picture].flatten(0, 1)
        for span in plan.spans
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# --- blocks -------------------------------------------------------------------------------------


def _project(layer: nn.Module, name: str, x: Tensor, plan: Plan, layout: str) -> Tensor:
    """The linear and, for the requests that bring them, their adapters."""
    y: Tensor = layer(x, plan.exact[layout]) if isinstance(layer, TwinLinear) else layer(x)
    for patch in plan.patches:
        for delta in patch.adapter.get(name, ()):
            start, end = getattr(patch, layout)
            delta.add_to(y[start:end], x[start:end])
    return y


def _norm_modulated(
    x: Tensor, plan: Plan, parts: Sequence[Tensor], at: int, place: Callable[[Span, Tensor], Tensor]
) -> Tensor:
    """Layer norm, then the shift `parts[at]` and the scale `parts[at + 1]` of each request."""
    y = kernels.norm(x)
    for span, part in zip(plan.spans, parts, strict=True):
        kernels.modulate_(place(span, y), part[at], part[at + 1])
    return y


def _add_gated(
    x: Tensor,
    y: Tensor,
    plan: Plan,
    parts: Sequence[Tensor],
    at: int,
    place: Callable[[Span, Tensor], Tensor],
) -> None:
    for span, part in zip(plan.spans, parts, strict=True):
        kernels.add_gated_(place(span, x), place(span, y), part[at])


def _double(block: DoubleBlock, name: str, plan: Plan, text: Tensor, image: Tensor) -> None:
    streams = (
        (block.text, "text", text, Span.in_text),
        (block.image, "image", image, Span.in_image),
    )
    heads = []
    for weights, layout, x, place in streams:
        parts = plan.of(f"{name}.{layout}")
        h = _norm_modulated(x, plan, parts, 0, place)
        qkv = _project(weights.qkv, f"{name}.{layout}.qkv", h, plan, layout)
        heads.append(_heads(qkv, weights))
    qk, v = (_join(plan, of_text, of_image) for of_text, of_image in zip(*heads, strict=True))
    mixed = _part(plan, _attend(plan, name, qk, v))
    for (weights, layout, x, place), y in zip(streams, mixed, strict=True):
        parts = plan.of(f"{name}.{layout}")
        prefix = f"{name}.{layout}"
        y = _project(weights.out, f"{prefix}.out", y, plan, layout)
        _add_gated(x, y, plan, parts, 2, place)
        h = _norm_modulated(x, plan, parts, 3, place)
        h = kernels.gelu(_project(weights.up, f"{prefix}.up", h, plan, layout))
        h = _project(weights.down, f"{prefix}.down", h, plan, layout)
        _add_gated(x, h, plan, parts, 5, place)


def _heads(qkv: Tensor, weights: Stream | SingleBlock) -> tuple[Tensor, Tensor]:
    """(N, 3 width) -> queries and keys, normed, (N, 2, heads, D), and values, (N, heads, D)."""
    norm = weights.norm_qk.view(2, -1)
    parts = torch.unflatten(qkv, 1, (3, -1, norm.shape[1]))
    return kernels.norm_heads(parts[:, :2], norm), parts[:, 2]


def _attend(plan: Plan, name: str, qk: Tensor, v: Tensor, *, pictures_only: bool = False) -> Tensor:
    """(N, 2, heads, D) and (N, heads, D), in joint order -> (N, width), or those of pictures."""
    parts = []
    for at, span in enumerate(plan.spans):
        query, key = kernels.rotate(span.in_joint(qk), plan.rotation[at]).unbind(2)
        if pictures_only:
            query = query[:, span.text : span.text + span.picture]
        key, value = _remembered(span, plan.memories[at], name, key, span.in_joint(v))
        parts.append(kernels.attend(query, key, value).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _remembered(
    span: Span, memories: Sequence[Memory | None], name: str, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values of a span with those that its members remember, or remember them now."""
    if span.kept:
        there = [memory.of(name) for memory in memories if memory is not None]
        keys, values = zip(*there, strict=True)
        return torch.cat([key, _stack(keys)], dim=1), torch.cat([value, _stack(values)], dim=1)
    start = span.text + span.picture
    for at, memory in enumerate(memories):
        if memory is not None:
            memory.keep(name, key[at, start:], value[at, start:])
    return key, value


def _single(block: SingleBlock, name: str, plan: Plan, joint: Tensor) -> None:
    parts = plan.of(name)
    width = joint.shape[1]
    h = _norm_modulated(joint, plan, parts, 0, Span.in_joint)
    fused = _project(block.fused, f"{name}.fused", h, plan, "joint")
    qk, v = _heads(fused[:, : 3 * width], block)
    both = torch.cat([_attend(plan, name, qk, v), kernels.gelu(fused[:, 3 * width :])], dim=1)
    y = _project(block.out, f"{name}.out", both, plan, "joint")
    _add_gated(joint, y, plan, parts, 2, Span.in_joint)


def _last_single(block: SingleBlock, name: str, plan: Plan, joint: Tensor) -> Tensor:
    """As `_single`, but only the pictures come out: nobody reads the other rows any more."""
    fused, out = (_only(layer, plan) for layer in (block.fused, block.out))
    if plan.patches or not isinstance(fused, nn.Linear):
        _single(block, name, plan, joint)
        return _pictures(plan, joint)
    parts = plan.of(name)
    width = joint.shape[1]
    h = _norm_modulated(joint, plan, parts, 0, Span.in_joint)
    qk, v = _heads(_columns(fused, h, slice(0, 3 * width)), block)
    mixed = _attend(plan, name, qk, v, pictures_only=True)
    rest = _columns(fused, _pictures(plan, h), slice(3 * width, None))
    both = torch.cat([mixed, kernels.gelu(rest)], dim=1)
    x = _pictures(plan, joint).clone()
    _add_gated(x, out(both), plan, parts, 2, Span.in_pictures)
    return x


def _only(layer: nn.Module, plan: Plan) -> nn.Module:
    """The form of a layer that all rows use; the layer itself where they differ."""
    if not isinstance(layer, TwinLinear) or 0 < plan.exact["joint"] < plan.tokens:
        return layer
    return layer.exact if plan.exact["joint"] else layer.coarse


def _columns(layer: nn.Linear, x: Tensor, columns: slice) -> Tensor:
    """Some of the outputs of a linear."""
    return functional.linear(x, layer.weight[columns], layer.bias[columns])


def _velocities(
    model: FluxTransformer, plan: Plan, pictures: Tensor, order: Sequence[int]
) -> list[Tensor]:
    """The last linear, cut into requests, in the caller's order. `pictures` is used up."""
    h = _norm_modulated(pictures, plan, plan.of("out"), 0, Span.in_pictures)
    y = model.out(h)
    pieces = [piece for span in plan.spans for piece in span.in_pictures(y)]
    found: list[Tensor] = [y] * len(order)
    for at, piece in zip(order, pieces, strict=True):
        found[at] = piece
    return found
