"""Input pictures brought in for a job; whatever is wrong with one names the field it came in."""

import asyncio

from fluxserve.core.errors import InputUnreachable, InvalidRequest, NotFound, TooLarge
from fluxserve.core.ports import EncodedImage, Intake
from fluxserve.core.request import ImageInput, ImageRequest

OF_ONE_PICTURE = (InputUnreachable, InvalidRequest, NotFound, TooLarge)


async def load_input(intake: Intake, image: ImageInput) -> EncodedImage:
    """The bytes behind an input, from the store or fetched.

    InputUnreachable, InvalidRequest, NotFound or TooLarge, naming the caller's field.
    """
    try:
        return await intake.load(image)
    except OF_ONE_PICTURE as error:
        name = image.field_name
        if not name:
            raise
        raise type(error)(f"{name}: {error.failure().bare}", field=name) from error


async def load_inputs(
    intake: Intake, request: ImageRequest
) -> tuple[tuple[EncodedImage, ...], EncodedImage | None]:
    """Every input picture of a request in order, and its mask, brought in side by side.

    Errors as in `load_input`: of several that are wrong, the first in order is told.
    """
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
