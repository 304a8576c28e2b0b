"""Input pictures brought in side by side: all of them take as long as the slowest."""

import asyncio

from fluxserve.core.inputs import load_input
from fluxserve.core.ports import EncodedImage, Intake
from fluxserve.core.request import ImageRequest


async def load_at_once(
    intake: Intake, request: ImageRequest
) -> tuple[tuple[EncodedImage, ...], EncodedImage | None]:
    """As `core.inputs.load_inputs`: of several that are wrong, the first in order is told."""
    wanted = [*request.images, *([request.mask] if request.mask else [])]
    tasks = [asyncio.create_task(load_input(intake, image)) for image in wanted]
    try:
        loaded = [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    count = len(request.images)
    return tuple(loaded[:count]), loaded[count] if request.mask else None
