"""What OpenAI's clients read: a finished call, stream events, lists of models. All pure."""

import base64
import json
from collections.abc import Mapping, Sequence

from sse_starlette import ServerSentEvent

from fluxserve.core.catalog import ModelCard
from fluxserve.core.errors import Failure
from fluxserve.core.ports import EncodedImage
from fluxserve.core.prediction import OutputImage, Prediction
from fluxserve.core.request import JSON
from fluxserve.dialects.links import Links
from fluxserve.dialects.openai.errors import error

NAME = "openai"
RELEASED = 1722470400  # FLUX.1's release, in seconds; lists name a time for every model
USAGE: Mapping[str, JSON] = {  # nothing is counted in tokens here; typed clients want all members
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def images(
    predictions: Sequence[Prediction], entries: Sequence[Mapping[str, JSON]]
) -> dict[str, JSON]:
    """The answer of a call that became these finished predictions."""
    first = predictions[0]
    return {
        "created": int(first.created_at.timestamp()),
        "data": list(entries),
        **_manner(first),
        "usage": USAGE,
    }


def entry(prediction: Prediction, image: OutputImage, **where: str) -> dict[str, JSON]:
    """One of `data`; `where` is b64_json or url."""
    return {**where, "revised_prompt": prediction.request.prompt, "seed": image.seed}


def render(prediction: Prediction, links: Links) -> dict[str, JSON]:
    """A prediction with links to its pictures, as a call with `response_format: url` answers."""
    linked = zip(prediction.outputs, links.outputs(prediction), strict=True)
    entries = [entry(prediction, image, url=url) for image, url in linked if not image.flagged]
    return images([prediction], entries)


def partial(
    kind: str, prediction: Prediction, preview: EncodedImage, index: int, at: float
) -> ServerSentEvent:
    """A picture on its way; size and format are the preview's own."""
    body: dict[str, JSON] = {
        "type": f"{kind}.partial_image",
        "b64_json": base64.b64encode(preview.data).decode(),
        "partial_image_index": index,
        "created_at": int(at),
        **_manner(prediction),
        "size": f"{preview.width}x{preview.height}",
        "output_format": preview.mime.rpartition("/")[2],
    }
    return _event(f"{kind}.partial_image", body)


def completed(kind: str, prediction: Prediction, data: bytes, at: float) -> ServerSentEvent:
    body: dict[str, JSON] = {
        "type": f"{kind}.completed",
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(at),
        **_manner(prediction),
        "usage": USAGE,
    }
    return _event(f"{kind}.completed", body)


def broken(failure: Failure) -> ServerSentEvent:
    """An error after the stream began."""
    return _event("error", error(failure)[1])


def model(card: ModelCard, name: str) -> dict[str, JSON]:
    return {"id": name, "object": "model", "created": RELEASED, "owned_by": card.owner}


def _manner(prediction: Prediction) -> dict[str, JSON]:
    """How the pictures are made: background, format, quality, size."""
    request, said = prediction.request, prediction.origin.said
    blob = prediction.outputs[0].blob if prediction.outputs else None
    width, height = (blob.width, blob.height) if blob else (request.width, request.height)
    quality = said.get("quality")
    return {
        "background": "opaque",
        "output_format": request.output_format.value,
        "quality": quality if isinstance(quality, str) else "auto",
        "size": f"{width}x{height}",
    }


def _event(name: str, body: JSON) -> ServerSentEvent:
    return ServerSentEvent(event=name, data=json.dumps(body, separators=(",", ":")))
