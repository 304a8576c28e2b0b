"""Pictures from a provider: fetched, checked, in the format that was asked for, stored by us."""

import asyncio
import logging
from collections.abc import Sequence

from fluxserve.core.attempts import Attempt
from fluxserve.core.errors import FluxserveError
from fluxserve.core.events import Event
from fluxserve.core.ports import EncodedImage, Output
from fluxserve.core.prediction import OutputImage, Prediction
from fluxserve.core.request import ImageRequest
from fluxserve.engines.upstream.answers import Finished, PollLie
from fluxserve.engines.upstream.base import Channel, Desk
from fluxserve.images.codec import decode, encode, prepare
from fluxserve.images.inline import decode_base64, decode_data_uri, is_data_uri

log = logging.getLogger(__name__)

FIELD = "output"


async def collect(
    desk: Desk, prediction: Prediction, attempt: Attempt, channel: Channel, done: Finished
) -> Sequence[tuple[OutputImage, Event]]:
    """Store the pictures of one finished attempt; the events are yet to be saved.

    PollTrouble, PollLie.
    """
    request = prediction.request
    per = channel.provider.outputs_max(attempt.model)
    first = attempt.part * per
    expected = min(per, request.num_outputs - first)
    given = done.pictures[:expected]
    if not given:
        raise PollLie(f"{channel.name} finished without a picture")
    if len(given) < expected:
        log.warning("%s: %d pictures instead of %d", prediction.id, len(given), expected)
    kept: list[tuple[OutputImage, Event]] = []
    for index, item in enumerate(given):
        data = await _bytes(item, channel)
        try:
            image = await asyncio.to_thread(_checked, data, request)
        except FluxserveError as error:
            text = f"what {channel.name} delivered is no usable picture: {error.message}"
            raise PollLie(text) from error
        flagged = index < len(done.flagged) and done.flagged[index]
        place = first + index
        output = Output(index=place, image=image, seed=request.seed + place, flagged=flagged)
        kept.append(await desk.outcomes.put(prediction, output))
    return kept


async def _bytes(item: str | bytes, channel: Channel) -> bytes:
    if isinstance(item, bytes):
        return item
    cap = channel.spec.output_max_bytes
    try:
        if is_data_uri(item):
            return decode_data_uri(item, field=FIELD, size_max_bytes=cap)
        if "://" not in item[:16] and len(item) > 256:
            return decode_base64(item, field=FIELD, size_max_bytes=cap)
    except FluxserveError as error:
        raise PollLie(f"{channel.name} delivered a broken data URI") from error
    return await channel.provider.picture(item)


def _checked(data: bytes, request: ImageRequest) -> EncodedImage:
    """The picture, proved to be one, in the format of the request."""
    image = prepare(data, field=FIELD)
    if image.mime == request.output_format.mime:
        return image
    pixels = decode(image.data, "RGBA" if image.mime != "image/jpeg" else "RGB", field=FIELD)
    return encode(pixels, request.output_format, request.output_quality)
