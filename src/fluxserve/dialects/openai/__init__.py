"""The OpenAI Images dialect: pictures in the answer itself, or as a stream with partial ones.

POST /v1/images/generations   from a prompt
POST /v1/images/edits         from pictures: a form, or JSON
POST /v1/images/variations    404: retired
GET  /v1/models               with /v1/models/{id}; at the root the list is shared with Replicate's

The same under /openai/v1.
"""

import uuid
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.catalog import ModelCard
from fluxserve.core.errors import UnknownModel
from fluxserve.dialects.base import Dialect, Handler, Services, answering
from fluxserve.dialects.openai import answers
from fluxserve.dialects.openai.answers import NAME, render
from fluxserve.dialects.openai.errors import error, error_headers
from fluxserve.dialects.openai.images import NO_STORE, Images, caller_of
from fluxserve.dialects.openai.params import served
from fluxserve.dialects.wire import Answer

MOUNTS = ("/v1", "/openai/v1")
OWN = "/openai/v1"


def routes(services: Services, mount: str) -> Sequence[Route]:
    images = Images(services=services, mount=mount)

    async def listed(request: Request) -> Response:
        caller = await caller_of(services, request)
        data = [answers.model(card, name_of(services, card)) for card in served(services, caller)]
        return Answer({"object": "list", "data": data}, headers=_headers())

    async def one(request: Request) -> Response:
        caller = await caller_of(services, request)
        name = request.path_params["model"]
        card = services.catalog.find(name)
        if card is None or card not in served(services, caller):
            raise UnknownModel(f"The model '{name[:200]}' does not exist.", field="model")
        return Answer(answers.model(card, name), headers=_headers())

    found = [
        _route(f"{mount}/images/generations", images.generate, "POST"),
        _route(f"{mount}/images/edits", images.edit, "POST"),
        _route(f"{mount}/images/variations", images.variation, "POST"),
    ]
    if mount == OWN:
        found.append(_route(f"{mount}/models", listed, "GET"))
        found.append(_route(f"{mount}/models/{{model:path}}", one, "GET"))
    else:  # the list and names of two parts belong to Replicate's dialect here
        found.append(_route(f"{mount}/models/{{model}}", one, "GET"))
    return found


def name_of(services: Services, card: ModelCard) -> str:
    """The name to list: without the owner, where that still means this model."""
    return card.name if services.catalog.find(card.name) is card else card.id


def _headers() -> dict[str, str]:
    return {**NO_STORE, "x-request-id": str(uuid.uuid4())}


def _route(path: str, handler: Handler, method: str) -> Route:
    return Route(path, answering(error, error_headers)(handler), methods=[method])


def owns(path: str) -> bool:
    return path.startswith((f"{OWN}/", "/v1/images/")) or path in (OWN, "/v1/images")


DIALECT = Dialect(
    name=NAME,
    mounts=MOUNTS,
    routes=routes,
    render=render,
    error=error,
    owns=owns,
    error_headers=error_headers,
)
