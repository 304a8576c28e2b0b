"""The small resources: account, hardware, deployments, collections, trainings, webhook secret."""

from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.access import Caller
from fluxserve.core.errors import NotFound
from fluxserve.core.request import JSON
from fluxserve.dialects.base import Services
from fluxserve.dialects.links import Links
from fluxserve.dialects.replicate.api import answer, page
from fluxserve.dialects.replicate.modelpages import Models
from fluxserve.dialects.replicate.shelf import Model, Shelf

COLLECTIONS: tuple[tuple[str, str, str, bool], ...] = (
    ("text-to-image", "Generate images", "Models that make pictures from text", False),
    ("image-editing", "Edit images", "Models that edit pictures by instruction", True),
)


def username() -> str:
    """The name of the one account that every key belongs to."""
    return "default"


def account(caller: Caller) -> dict[str, JSON]:
    name = caller.key.name if caller.key and caller.key.name else "fluxserve"
    return {"type": "organization", "username": username(), "name": name, "github_url": None}


class Account:
    """The handlers."""

    def __init__(self, services: Services, shelf: Shelf, models: Models, mount: str) -> None:
        self._services = services
        self._shelf = shelf
        self._models = models
        self._mount = mount

    async def account(self, request: Request, caller: Caller) -> Response:
        return answer(account(caller))

    async def hardware(self, request: Request, caller: Caller) -> Response:
        name = self._services.http.hardware
        return answer([{"name": name, "sku": name}])

    async def secret(self, request: Request, caller: Caller) -> Response:
        return answer({"key": self._services.secrets.webhook_secret(caller.tenant_id)})

    async def trainings(self, request: Request, caller: Caller) -> Response:
        """Nothing is trained here: an empty page."""
        return answer(page([]))

    async def deployments(self, request: Request, caller: Caller) -> Response:
        return answer(page([self._deployment(model, caller) for model in self._shelf.models()]))

    async def deployment(self, request: Request, caller: Caller) -> Response:
        model = self._shelf.named("{owner}/{name}".format(**request.path_params))
        return answer(self._deployment(model, caller))

    async def collections(self, request: Request, caller: Caller) -> Response:
        return answer(page([_head(row) for row in COLLECTIONS]))

    async def collection(self, request: Request, caller: Caller) -> Response:
        links = self._services.links(request, self._mount)
        for row in COLLECTIONS:
            if row[0] == request.path_params["slug"]:
                return answer({**_head(row), "models": await self._members(row[3], links)})
        raise NotFound("there is no such collection")

    async def _members(self, edits: bool, links: Links) -> list[JSON]:
        return [
            await self._models.show(model, links)
            for model in self._shelf.models()
            if any(task.value == "edit" for task in model.card.tasks) is edits
        ]

    def _deployment(self, model: Model, caller: Caller) -> dict[str, JSON]:
        """Every model can be called as a deployment of its own name."""
        owner, _, name = model.name.partition("/")
        return {
            "owner": owner,
            "name": name,
            "current_release": {
                "number": 1,
                "model": model.name,
                "version": model.version,
                "created_at": model.inputs.published,
                "created_by": account(caller),
                "configuration": {
                    "hardware": self._services.http.hardware,
                    "min_instances": 1,
                    "max_instances": 1,
                },
            },
        }


def _head(row: tuple[str, str, str, bool]) -> dict[str, JSON]:
    slug, name, description, _ = row
    return {"slug": slug, "name": name, "description": description}
