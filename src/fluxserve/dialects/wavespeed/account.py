"""What an account may ask of WaveSpeed: models and prices, balance, the webhook secret."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.errors import InvalidRequest, Problem, Rule, Unavailable, UnknownModel
from fluxserve.core.request import JSON, ImageInput, Task
from fluxserve.core.schema import Field
from fluxserve.dialects.base import Services, read_object
from fluxserve.dialects.wavespeed import reading
from fluxserve.dialects.wavespeed.errors import success
from fluxserve.dialects.wavespeed.forms import IMAGE, IMAGES, MASK, SIZE, Model
from fluxserve.dialects.wavespeed.predictions import caller_of, in_their_words

BALANCE_WITHOUT_BUDGET = 1_000_000.0  # USD
CURRENCY = "USD"
ANY_URL = "https://example.com/picture.png"  # stands for the picture that a price is asked without
PICTURE_FIELDS: Mapping[str, Field] = {field.name: field for field in (IMAGE, IMAGES, MASK)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The handlers under one mount."""

    services: Services
    mount: str
    models: Mapping[str, Model]

    async def balance(self, request: Request) -> Response:
        return success({"balance": await self._balance(request)})

    async def balance_with_currency(self, request: Request) -> Response:
        return success({"balance": await self._balance(request), "currency": CURRENCY})

    async def _balance(self, request: Request) -> float:
        caller = await caller_of(self.services, request)
        await self.services.limiter.hit(caller, "read")
        micro = await self.services.accounts.balance_micro(caller)
        return BALANCE_WITHOUT_BUDGET if micro is None else micro / 1_000_000

    async def catalogue(self, request: Request) -> Response:
        await caller_of(self.services, request)
        models = self.models.values()
        return success([entry(model, self.mount, self._cost(model, {})) for model in models])

    async def price(self, request: Request) -> Response:
        """What one run with these inputs costs where it would go just now."""
        await caller_of(self.services, request)
        body = await read_object(request, self.services.http.body_max_bytes)
        name = body.get("model_id")
        if not isinstance(name, str) or not name.strip():
            problem = Problem(field="model_id", rule=Rule.REQUIRED, message="model_id is required")
            raise InvalidRequest.of([problem])
        model = self.models.get(name.strip().lower())
        if model is None:
            raise UnknownModel(f"there is no model named {name[:200]!r}", field="model_id")
        inputs = body.get("inputs")
        cost = self._cost(model, inputs if isinstance(inputs, dict) else {})
        return success({"model_id": model.id, "unit_price": cost, "currency": CURRENCY})

    def _cost(self, model: Model, inputs: Mapping[str, JSON]) -> float:
        """USD of one run, by the price table; 0 where that has no price. InvalidRequest."""
        services, form = self.services, model.form
        body = {"prompt": "a picture", **inputs}
        texts, problems = reading.pictures_in(form, body)
        is_needed = not {"image", "images"}.isdisjoint(form.needs)
        if not texts and (is_needed or Task.TEXT_TO_IMAGE not in model.card.tasks):
            texts["image"] = ANY_URL
        checked = reading.read(form, body, texts)
        if problems := [*problems, *checked.problems]:
            raise InvalidRequest.of(problems)
        params = reading.to_params(
            model, checked.values, dict.fromkeys(texts, ImageInput(url=ANY_URL))
        )
        try:
            request = services.catalog.complete(params)
        except InvalidRequest as problem:
            raise in_their_words(form, problem) from problem
        try:
            engine = services.router.choose(model.card, request)
        except Unavailable:
            return 0.0  # nobody serves it, so nobody charges for it
        return (services.price_book.cost(engine, request) or 0) / 1_000_000

    async def billings(self, request: Request) -> Response:
        """No bills are written here."""
        await caller_of(self.services, request)
        await read_object(request, self.services.http.body_max_bytes)
        return success({"page": 1, "total": 0, "items": []})

    async def webhook_secret(self, request: Request) -> Response:
        caller = await caller_of(self.services, request)
        return success({"secret": self.services.secrets.webhook_secret(caller.tenant_id)})


def entry(model: Model, mount: str, price: float) -> JSON:
    """A model as catalogues show it; its schema stands where either kind of reader looks."""
    schema = request_schema(model)
    return {
        "model_id": model.id,
        "name": model.id,
        "description": f"{model.card.title}. {model.card.description}",
        "type": model.type,
        "base_price": price,
        "formula": "",
        "api_schema": {
            "api_schemas": [
                {
                    "type": "model_run",
                    "api_path": f"{mount}/{model.id}",
                    "method": "POST",
                    "request_schema": schema,
                }
            ],
            "components": {"schemas": {"Request": schema}},
        },
    }


def request_schema(model: Model) -> dict[str, JSON]:
    """The body of a submit as JSON Schema."""
    pictures = [PICTURE_FIELDS[name] for name in model.form.pictures]
    first, *others = model.form.fields
    fields: Sequence[Field] = [first, *pictures, *others]
    properties: dict[str, JSON] = {field.name: field.json_schema() for field in fields}
    if model.form.size:
        width, height = model.form.size
        properties["size"] = {**SIZE.json_schema(), "default": f"{width}*{height}"}
    return {
        "type": "object",
        "required": list(model.form.needs),
        "x-order-properties": [field.name for field in fields],
        "properties": properties,
    }
