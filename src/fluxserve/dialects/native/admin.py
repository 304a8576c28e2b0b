"""What operators ask: keys, webhook messages, devices."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.access import ApiKey
from fluxserve.core.deliveries import Delivery, DeliveryState
from fluxserve.core.errors import Forbidden, InvalidRequest
from fluxserve.core.request import JSON
from fluxserve.core.schema import Field, Kind, check
from fluxserve.dialects.base import Services, answering, read_object
from fluxserve.dialects.native.predictions import caller_of
from fluxserve.dialects.native.words import error
from fluxserve.dialects.wire import Answer

# What the store can hold, and a date can say.
COUNT_MAX = 1_000_000_000
USD_MAX = 1_000_000_000.0
EXPIRES_MAX_S = 100 * 366 * 86400.0
KEY_FIELDS = (
    Field(name="name", kind=Kind.STRING, max_length=100, default=""),
    Field(name="models", kind=Kind.ARRAY, items=Kind.STRING, description="empty: all"),
    Field(name="rate_per_minute", kind=Kind.INTEGER, min=0, max=COUNT_MAX, default=0),
    Field(name="concurrency_max", kind=Kind.INTEGER, min=0, max=COUNT_MAX, default=0),
    Field(
        name="budget",
        kind=Kind.NUMBER,
        min=0,
        max=USD_MAX,
        default=0.0,
        description="USD per month",
    ),
    Field(
        name="expires_s",
        kind=Kind.NUMBER,
        min=1,
        max=EXPIRES_MAX_S,
        description="seconds from now",
    ),
    Field(name="is_admin", kind=Kind.BOOLEAN, default=False),
)


async def admin_of(services: Services, request: Request) -> None:
    """Forbidden unless the caller may administer this server."""
    caller = await caller_of(services, request)
    if not caller.is_admin:
        raise Forbidden("this needs an admin key")


def routes(services: Services, mount: str) -> list[Route]:
    async def keys(request: Request) -> Response:
        await admin_of(services, request)
        return Answer({"results": [_key(key) for key in await services.keyring.list()]})

    async def create_key(request: Request) -> Response:
        await admin_of(services, request)
        body = await read_object(request, services.http.body_max_bytes)
        key, secret = await _create_key(services, body)
        return Answer({**_key(key), "secret": secret}, 201)

    async def revoke_key(request: Request) -> Response:
        await admin_of(services, request)
        key = await services.keyring.revoke(request.path_params["id"])
        return Answer(_key(key))

    async def deliveries(request: Request) -> Response:
        await admin_of(services, request)
        state = request.query_params.get("state")
        if state and state not in list(DeliveryState):
            raise InvalidRequest(f"one of {', '.join(DeliveryState)}", field="state")
        rows = await services.deliveries.page(
            state=DeliveryState(state) if state else None,
            prediction_id=request.query_params.get("prediction_id"),
        )
        return Answer({"results": [_delivery(row) for row in rows]})

    async def redeliver(request: Request) -> Response:
        await admin_of(services, request)
        await services.redelivery.redeliver(request.path_params["id"])
        return Answer(_delivery(await services.deliveries.get(request.path_params["id"])), 202)

    async def devices(request: Request) -> Response:
        await caller_of(services, request)
        return Answer({"results": list(services.devices())})

    async def channels(request: Request) -> Response:
        await admin_of(services, request)
        return Answer({"results": list(services.channels())})

    answer = answering(error)
    return [
        Route(f"{mount}/keys", answer(keys), methods=["GET"]),
        Route(f"{mount}/keys", answer(create_key), methods=["POST"]),
        Route(f"{mount}/keys/{{id}}", answer(revoke_key), methods=["DELETE"]),
        Route(f"{mount}/deliveries", answer(deliveries), methods=["GET"]),
        Route(f"{mount}/deliveries/{{id}}/redeliver", answer(redeliver), methods=["POST"]),
        Route(f"{mount}/devices", answer(devices), methods=["GET"]),
        Route(f"{mount}/channels", answer(channels), methods=["GET"]),
    ]


async def _create_key(services: Services, body: Mapping[str, JSON]) -> tuple[ApiKey, str]:
    checked = check(KEY_FIELDS, body, unknown=False)
    if checked.problems:
        raise InvalidRequest.of(checked.problems)
    values = checked.values
    names = values["models"] if isinstance(values["models"], list) else []
    expires = values["expires_s"]
    return await services.keyring.create(
        name=str(values["name"] or ""),
        models=[services.catalog.card(str(name)).id for name in names],
        rate_per_minute=_whole(values["rate_per_minute"]),
        concurrency_max=_whole(values["concurrency_max"]),
        budget_micro=round(1_000_000 * _number(values["budget"])),
        expires_in=timedelta(seconds=_number(expires)) if expires else None,
        is_admin=values["is_admin"] is True,
    )


def _whole(value: JSON) -> int:
    return value if isinstance(value, int) else 0


def _number(value: JSON) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _key(key: ApiKey) -> dict[str, JSON]:
    def time(at: datetime | None) -> str | None:
        return at.isoformat() if at else None

    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "is_admin": key.is_admin,
        "models": list(key.models),
        "rate_per_minute": key.rate_per_minute,
        "concurrency_max": key.concurrency_max,
        "budget": key.budget_micro / 1_000_000,
        "created_at": time(key.created_at),
        "expires_at": time(key.expires_at),
        "revoked_at": time(key.revoked_at),
        "last_used_at": time(key.last_used_at),
    }


def _delivery(delivery: Delivery) -> dict[str, JSON]:
    return {
        "id": delivery.id,
        "prediction_id": delivery.prediction_id,
        "kind": delivery.kind,
        "url": delivery.url,
        "state": delivery.state.value,
        "tries": delivery.tries,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "created_at": delivery.created_at.isoformat(),
        "next_at": delivery.next_at.isoformat(),
    }
