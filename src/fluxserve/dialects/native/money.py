"""What things cost and what was spent: prices, usage, the ledger, submissions at providers.

GET  /usage      spending by key, model, channel and day; ?start= ?end= ?format=csv
GET  /prices     every version, newest first (admin)
POST /prices     a price from now on, or from `valid_from` (admin)
GET  /attempts   submissions at providers, the unknown ones too; ?state= ?channel= (admin)
POST /attempts/{id}/resolve   what became of an unknown one (admin)
"""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.attempts import Attempt, AttemptState
from fluxserve.core.errors import InvalidRequest
from fluxserve.core.ids import new_id
from fluxserve.core.money import Price, Rule, Usage
from fluxserve.core.request import JSON
from fluxserve.core.schema import Field, Kind, check
from fluxserve.dialects.base import Services, answering, read_object
from fluxserve.dialects.native.admin import admin_of
from fluxserve.dialects.native.predictions import caller_of
from fluxserve.dialects.native.words import error
from fluxserve.dialects.wire import Answer

MICRO = 1_000_000  # in a USD
EARLIEST = datetime(1, 3, 1, tzinfo=UTC)  # of which a month can be taken
USD_MAX = 1_000_000.0  # of one price
USAGE_DAYS = 31  # shown where no start is given
PRICE_FIELDS = (
    Field(name="model", kind=Kind.STRING, default="*", description="a model name; * for all"),
    Field(name="channel", kind=Kind.STRING, default="*", description="engine or upstream; * all"),
    Field(name="per_image", kind=Kind.NUMBER, min=0, max=USD_MAX, default=0.0, description="USD"),
    Field(
        name="per_megapixel", kind=Kind.NUMBER, min=0, max=USD_MAX, default=0.0, description="USD"
    ),
    Field(name="per_step", kind=Kind.NUMBER, min=0, max=USD_MAX, default=0.0, description="USD"),
    Field(name="options", kind=Kind.OBJECT, description="field of a request: USD when it is set"),
    Field(name="valid_from", kind=Kind.STRING, description="ISO 8601; now where not given"),
)
DECISION_FIELDS = (
    Field(
        name="outcome",
        kind=Kind.STRING,
        required=True,
        choices=("void", "accepted"),
        description="void: it never happened; accepted: the provider has it as upstream_id",
    ),
    Field(name="upstream_id", kind=Kind.STRING, max_length=200, description="the provider's id"),
)
COLUMNS = ("day", "key_id", "model", "channel", "predictions", "usd")


def routes(services: Services, mount: str) -> list[Route]:
    async def usage(request: Request) -> Response:
        caller = await caller_of(services, request)
        end = _time(request, "end") or services.clock()
        start = _time(request, "start") or max(end, EARLIEST) - timedelta(days=USAGE_DAYS)
        key_id = None if caller.is_admin else caller.key_id
        rows = await services.money.usage(key_id=key_id, start=start, end=end)
        if request.query_params.get("format") == "csv":
            return Response(_csv(rows), media_type="text/csv")
        total = sum(row.micro for row in rows) / MICRO
        return Answer({"results": [_usage(row) for row in rows], "total_usd": total})

    async def prices(request: Request) -> Response:
        await admin_of(services, request)
        found = await services.money.prices()
        return Answer({"results": [_price(price) for price in found]})

    async def add_price(request: Request) -> Response:
        await admin_of(services, request)
        body = await read_object(request, services.http.body_max_bytes)
        price = _read_price(services, body)
        await services.money.add_price(price)
        await services.price_book.refresh()
        return Answer(_price(price), 201)

    async def attempts(request: Request) -> Response:
        await admin_of(services, request)
        state = request.query_params.get("state")
        if state and state not in list(AttemptState):
            raise InvalidRequest(f"one of {', '.join(AttemptState)}", field="state")
        found = await services.attempts.page(
            state=AttemptState(state) if state else None,
            channel=request.query_params.get("channel"),
        )
        return Answer({"results": [_attempt(attempt) for attempt in found]})

    async def resolve(request: Request) -> Response:
        await admin_of(services, request)
        body = await read_object(request, services.http.body_max_bytes)
        upstream_id = _read_decision(body)
        decided = await services.reviews.decide(request.path_params["id"], upstream_id)
        return Answer(_attempt(decided))

    answer = answering(error)
    return [
        Route(f"{mount}/usage", answer(usage), methods=["GET"]),
        Route(f"{mount}/prices", answer(prices), methods=["GET"]),
        Route(f"{mount}/prices", answer(add_price), methods=["POST"]),
        Route(f"{mount}/attempts", answer(attempts), methods=["GET"]),
        Route(f"{mount}/attempts/{{id}}/resolve", answer(resolve), methods=["POST"]),
    ]


def _read_price(services: Services, body: dict[str, JSON]) -> Price:
    checked = check(PRICE_FIELDS, body, unknown=False)
    if checked.problems:
        raise InvalidRequest.of(checked.problems)
    values = checked.values
    model = str(values["model"])
    options = values["options"] if isinstance(values["options"], dict) else {}
    for name, amount in options.items():
        is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not is_number or abs(float(cast("float", amount))) > USD_MAX:
            raise InvalidRequest(f"options.{name}: a number of USD", field=f"options.{name}")
    return Price(
        id=new_id(),
        model=model if model == "*" else services.catalog.card(model).id,
        channel=str(values["channel"]),
        rule=Rule(
            per_image=_micro(values["per_image"]),
            per_megapixel=_micro(values["per_megapixel"]),
            per_step=_micro(values["per_step"]),
            options={name: _micro(amount) for name, amount in options.items()},
        ),
        valid_from=_moment(values["valid_from"], "valid_from") or services.clock(),
    )


def _read_decision(body: dict[str, JSON]) -> str | None:
    """The provider's id of a submission that happened; None for one that did not."""
    checked = check(DECISION_FIELDS, body, unknown=False)
    if checked.problems:
        raise InvalidRequest.of(checked.problems)
    outcome, upstream_id = checked.values["outcome"], checked.values["upstream_id"]
    if outcome == "accepted" and not upstream_id:
        raise InvalidRequest("the provider's id of the job", field="upstream_id")
    if outcome == "void" and upstream_id:
        raise InvalidRequest("only for a job that was accepted", field="upstream_id")
    return str(upstream_id) if upstream_id else None


def _micro(value: JSON) -> int:
    return round(float(value) * MICRO) if isinstance(value, int | float) else 0


def _time(request: Request, name: str) -> datetime | None:
    return _moment(request.query_params.get(name), name)


def _moment(value: JSON, name: str) -> datetime | None:
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # in UTC it may lie before the year 1
        raise InvalidRequest("a time such as 2026-11-21T00:00:00Z", field=name) from None


def _usage(row: Usage) -> dict[str, JSON]:
    return {
        "day": row.day,
        "key_id": row.key_id or None,
        "model": row.model,
        "channel": row.channel,
        "predictions": row.predictions,
        "usd": row.micro / MICRO,
    }


def _csv(rows: Sequence[Usage]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(_usage(row) for row in rows)
    return out.getvalue()


def _price(price: Price) -> dict[str, JSON]:
    rule = price.rule
    return {
        "id": price.id,
        "model": price.model,
        "channel": price.channel,
        "per_image": rule.per_image / MICRO,
        "per_megapixel": rule.per_megapixel / MICRO,
        "per_step": rule.per_step / MICRO,
        "options": {name: micro / MICRO for name, micro in rule.options.items()},
        "valid_from": price.valid_from.isoformat(),
    }


def _attempt(attempt: Attempt) -> dict[str, JSON]:
    def time(at: datetime | None) -> str | None:
        return at.isoformat() if at else None

    return {
        "id": attempt.id,
        "prediction_id": attempt.prediction_id,
        "channel": attempt.channel,
        "model": attempt.model,
        "state": attempt.state.value,
        "upstream_id": attempt.upstream_id,
        "part": attempt.part,
        "parts": attempt.parts,
        "polls": attempt.polls,
        "usd": attempt.cost_micro / MICRO,
        "error": attempt.failure.message if attempt.failure else None,
        "created_at": time(attempt.created_at),
        "next_at": time(attempt.next_at),
        "finished_at": time(attempt.finished_at),
    }
