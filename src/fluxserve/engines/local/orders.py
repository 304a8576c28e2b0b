"""What the server orders from an engine process, from a job or a request. No torch."""

from collections.abc import Sequence
from datetime import UTC, datetime

from fluxserve.core.ports import Job
from fluxserve.core.request import ImageRequest, Margins, Task
from fluxserve.engines.local.wire import Order


def order_of(job: Job, indexes: tuple[int, ...], go_fast: tuple[str, ...], *, alone: bool) -> Order:
    left_s = None
    if job.deadline_at is not None:
        left_s = (job.deadline_at - datetime.now(UTC)).total_seconds()
    return order(
        job.request,
        job_id=job.prediction_id,
        sizes=[(image.width, image.height) for image in job.images],
        indexes=indexes,
        has_mask=job.mask is not None,
        key=job.key_id or "",
        priority=job.priority,
        deadline_s=left_s,
        alone=alone,
        go_fast=go_fast,
    )


def order(
    request: ImageRequest,
    *,
    job_id: str,
    sizes: Sequence[tuple[int, int]],
    indexes: tuple[int, ...] = (0,),
    has_mask: bool = False,
    key: str = "",
    priority: int = 0,
    deadline_s: float | None = None,
    alone: bool = False,
    go_fast: tuple[str, ...] = (),
) -> Order:
    """`go_fast`: the approximations that a request allows with its switch of that name."""
    return Order(
        id=job_id,
        model=request.model,
        task=Task(request.task).value,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width or 1024,
        height=request.height or 1024,
        num_steps=request.num_steps,
        guidance=request.guidance,
        strength=request.strength,
        seed=request.seed,
        indexes=indexes,
        output_format=request.output_format.value,
        output_quality=request.output_quality,
        sizes=tuple(sizes),
        has_mask=has_mask,
        margins=_sides(request.margins),
        loras=tuple((lora.path, lora.scale) for lora in request.loras),
        approximations=_allowed(request, go_fast),
        preview_steps=request.preview_steps,
        key=key,
        priority=priority,
        deadline_s=deadline_s,
        alone=alone,
    )


def _allowed(request: ImageRequest, go_fast: tuple[str, ...]) -> tuple[str, ...]:
    if request.approximate is not None:
        return tuple(name.value for name in request.approximate)
    return go_fast if request.go_fast else ()


def _sides(margins: Margins | None) -> tuple[int, int, int, int] | None:
    if margins is None:
        return None
    return margins.top, margins.bottom, margins.left, margins.right
