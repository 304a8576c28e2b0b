"""Models, their versions, readme, examples; the list, the search."""

import json
import time
from collections.abc import Sequence
from datetime import datetime

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fluxserve.core.access import Caller
from fluxserve.core.errors import InvalidRequest, NotFound, Problem, Rule
from fluxserve.core.ports import Query
from fluxserve.core.request import JSON
from fluxserve.dialects.base import MIB, Services, read_body
from fluxserve.dialects.links import Links
from fluxserve.dialects.replicate.api import answer, page
from fluxserve.dialects.replicate.schema import version
from fluxserve.dialects.replicate.shelf import Model, Shelf
from fluxserve.dialects.replicate.words import PROBLEM_TYPE, problem

SORT_BY = ("latest_version_created_at", "model_created_at")
DIRECTIONS = ("desc", "asc")
SEARCH_MAX = 50
SEARCH_DEFAULT = 20
COUNT_KEPT_S = 60.0  # a count of runs reads every record: one a minute is plenty


class Models:
    """The handlers. At the root, `/v1/models` is shared with OpenAI's list."""

    def __init__(self, services: Services, shelf: Shelf, mount: str, *, shared: bool) -> None:
        self._services = services
        self._shelf = shelf
        self._mount = mount
        self._is_shared = shared
        self._counts: dict[str, tuple[float, int]] = {}

    async def list(self, request: Request, caller: Caller) -> Response:
        links = self._services.links(request, self._mount)
        asked = request.query_params
        _one_of("sort_by", asked.get("sort_by"), SORT_BY)
        ascending = _one_of("sort_direction", asked.get("sort_direction"), DIRECTIONS) == "asc"
        models = sorted(
            self._shelf.models(), key=lambda model: model.inputs.published, reverse=not ascending
        )
        body = page([await self.show(model, links) for model in models])
        if not self._is_shared:
            return answer(body)
        opened = caller.key.models if caller.key else ()
        listed = [
            openai_entry(self._listed_id(model), model)
            for model in models
            if self._services.router.routes(model.card) and (not opened or model.card.id in opened)
        ]
        return answer({"object": "list", "data": listed, **body})

    async def get(self, request: Request, caller: Caller) -> Response:
        links = self._services.links(request, self._mount)
        model = self._named(request)
        body = await self.show(model, links)
        # OpenAI's clients fetch a listed model that has an owner in its id from here too.
        return answer({**openai_entry(model.name, model), **body} if self._is_shared else body)

    async def search(self, request: Request, caller: Caller) -> Response:
        """QUERY /models: the body is the text, bare or as a JSON string."""
        links = self._services.links(request, self._mount)
        text = (await read_body(request, MIB)).decode("utf-8", "replace").strip()
        found = search(self._shelf.models(), _unquoted(text))
        return answer(page([await self.show(model, links) for model, _ in found]))

    async def search_all(self, request: Request, caller: Caller) -> Response:
        """GET /search: models with scores."""
        links = self._services.links(request, self._mount)
        text = request.query_params.get("query", "").strip()
        if not text:
            headers = {"Content-Type": PROBLEM_TYPE}
            return answer(problem(400, "query is required"), 400, headers)
        limit = _limit(request.query_params.get("limit"))
        found = search(self._shelf.models(), text)[:limit]
        results: list[JSON] = [
            {
                "model": await self.show(model, links),
                "metadata": {
                    "tags": [task.value.replace("_", "-") for task in model.card.tasks],
                    "score": score,
                    "generated_description": model.card.description,
                },
            }
            for model, score in found
        ]
        return answer({"query": text, "models": results, "collections": [], "pages": []})

    async def versions(self, request: Request, caller: Caller) -> Response:
        """404 for models that are called by name only, which is what clients look for."""
        model = self._named(request)
        if model.is_official:
            raise NotFound("official models have no versions to list")
        return answer(page([version(model)]))

    async def version(self, request: Request, caller: Caller) -> Response:
        model = self._named(request)
        if request.path_params["version"].lower() != model.version:
            raise NotFound("there is no such version")
        return answer(version(model))

    async def readme(self, request: Request, caller: Caller) -> Response:
        return PlainTextResponse(readme(self._named(request)))

    async def examples(self, request: Request, caller: Caller) -> Response:
        """None are kept: other callers' pictures are nobody's examples."""
        self._named(request)
        return answer(page([]))

    async def show(self, model: Model, links: Links) -> dict[str, JSON]:
        owner, _, name = model.name.partition("/")
        return {
            "url": links.root(f"/{model.name}"),
            "owner": owner,
            "name": name,
            "description": model.card.description,
            "visibility": "public",
            "is_official": model.is_official,
            "github_url": None,
            "paper_url": None,
            "license_url": model.card.license_url or None,
            "run_count": await self._runs(model.name),
            "cover_image_url": None,
            "default_example": None,
            "latest_version": version(model),
        }

    async def _runs(self, name: str) -> int:
        """Predictions of a model that are on record, of every caller and a minute old at most."""
        now = time.monotonic()
        counted_at, runs = self._counts.get(name, (-COUNT_KEPT_S, 0))
        if now - counted_at >= COUNT_KEPT_S:
            runs = await self._services.predictions.count(Query(model_names=(name,)))
            self._counts[name] = (now, runs)
        return runs

    def _listed_id(self, model: Model) -> str:
        """The short name where that means this model, else the whole one."""
        short = model.name.partition("/")[2]
        return short if self._services.catalog.find(short) is model.card else model.name

    def _named(self, request: Request) -> Model:
        return self._shelf.named("{owner}/{name}".format(**request.path_params))


def openai_entry(id_: str, model: Model) -> dict[str, JSON]:
    """The same model as OpenAI's clients see it."""
    return {
        "id": id_,
        "object": "model",
        "created": int(datetime.fromisoformat(model.inputs.published).timestamp()),
        "owned_by": model.name.partition("/")[0],
    }


def search(models: Sequence[Model], text: str) -> list[tuple[Model, float]]:
    """Models that have any of the words, best first; the score is the share of words found."""
    words = text.lower().replace("/", " ").split()
    found: list[tuple[Model, float]] = []
    for model in models:
        card = model.card
        tasks = " ".join(task.value.replace("_", " ") for task in card.tasks)
        known = " ".join([model.name, card.title, card.description, tasks, *card.aliases]).lower()
        hits = sum(word in known for word in words)
        if hits:
            found.append((model, round(hits / len(words), 3)))
    return sorted(found, key=lambda pair: -pair[1])


def readme(model: Model) -> str:
    """What the model is, may be asked for, and under which licence."""
    card = model.card
    lines = [f"# {card.title}", "", card.description, ""]
    if card.license:
        lines += [f"Licence: {card.license}", ""]
    lines += ["| input | type | default |", "|---|---|---|"]
    for field in model.inputs.fields:
        default = "required" if field.required else json.dumps(field.default)
        kind = " or ".join(field.choices) if field.choices else field.kind.value
        lines.append(f"| `{field.name}` | {kind} | {default} |")
    return "\n".join(lines) + "\n"


def _unquoted(text: str) -> str:
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    return text


def _one_of(name: str, value: str | None, choices: Sequence[str]) -> str:
    if not value:
        return choices[0]
    if value in choices:
        return value
    listed = ", ".join(f'"{choice}"' for choice in choices)
    message = f"{name} must be one of the following: {listed}"
    raise InvalidRequest.of([Problem(field=name, rule=Rule.CHOICE, message=message)])


def _limit(text: str | None) -> int:
    if not text:
        return SEARCH_DEFAULT
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= SEARCH_MAX:
        return int(text)
    message = f"limit must be a whole number from 1 to {SEARCH_MAX}"
    raise InvalidRequest.of([Problem(field="limit", rule=Rule.TYPE, message=message)])
