"""Every operation of the native API: what it takes, what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from fluxserve.core.attempts import AttemptState
from fluxserve.core.deliveries import DeliveryState
from fluxserve.core.prediction import PredictionStatus
from fluxserve.core.request import JSON
from fluxserve.dialects.native.schemas import STREAMED, event_name
from fluxserve.dialects.native.shapes import Schema, link, moment, one_of, plain, ref, text

JSON_MIME = "application/json"
FILE_BODY: dict[str, JSON] = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"file": {"type": "string", "contentMediaType": "image/*"}},
            "required": ["file"],
        }
    },
    "application/octet-stream": {},  # the bare bytes
}
# A stream is text to OpenAPI; the extension leads on to what each event carries.
EVENTS: Schema = {
    **text("`data` of each event is JSON; `event` tells of which shape"),
    "x-events": {kind.value: ref(event_name(kind)) for kind in STREAMED},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. Schemas are named as in `SCHEMAS`."""

    name: str  # operationId
    method: str
    path: str
    about: str
    status: int = 200  # when all goes well
    body: str = ""
    content: Schema | None = None  # of the request, where it is no JSON
    answer: str = ""
    more: Sequence[tuple[str, Schema]] = ()  # other media types of the answer
    query: Sequence[tuple[str, Schema]] = ()
    headers: Sequence[tuple[str, Schema]] = ()
    told: Sequence[tuple[str, Schema]] = ()  # headers of the answer
    also: Sequence[tuple[int, str]] = ()  # other good answers, without a body
    is_free: bool = False  # asks for no key

    @property
    def in_path(self) -> str:
        """The parameter of the path; empty where there is none."""
        return self.path.partition("{")[2].partition("}")[0]


OPERATIONS = (
    Operation(
        name="createPrediction",
        method="post",
        path="/predictions",
        about="Create a prediction",
        status=201,
        body="Create",
        answer="Prediction",
        headers=[
            (
                "Idempotency-Key",
                text("equal calls with one key make one prediction", maxLength=255),
            )
        ],
        told=[("Location", link("of the prediction"))],
    ),
    Operation(
        name="listPredictions",
        method="get",
        path="/predictions",
        about="List predictions, newest first",
        answer="Predictions",
        query=[
            ("limit", plain("integer", "how many at most", minimum=0, maximum=200, default=50)),
            ("cursor", text("`next_cursor` of the page before")),
            ("status", one_of(PredictionStatus, "only these")),
            ("model", text("only those that were asked for by this name")),
        ],
    ),
    Operation(
        name="getPrediction",
        method="get",
        path="/predictions/{id}",
        about="One prediction",
        answer="Prediction",
        query=[
            (
                "wait",
                plain(
                    "number", "seconds that the answer is held until it ends", minimum=0, maximum=60
                ),
            )
        ],
    ),
    Operation(
        name="deletePrediction",
        method="delete",
        path="/predictions/{id}",
        about="Forget a prediction and its files",
        status=204,
    ),
    Operation(
        name="cancelPrediction",
        method="post",
        path="/predictions/{id}/cancel",
        about="Cancel a prediction",
        answer="Prediction",
    ),
    Operation(
        name="followPrediction",
        method="get",
        path="/predictions/{id}/events",
        about="Server-sent events of a prediction, to its end",
        more=[("text/event-stream", EVENTS)],
        headers=[("Last-Event-ID", plain("integer", "go on after this one", minimum=0))],
        also=[(204, "it has ended, and nothing came after Last-Event-ID")],
    ),
    Operation(
        name="uploadFile",
        method="post",
        path="/files",
        about="Upload a picture: multipart `file`, or the bare bytes",
        status=201,
        content=FILE_BODY,
        answer="File",
        headers=[("X-Filename", text("name of bare bytes"))],
    ),
    Operation(
        name="getFile", method="get", path="/files/{id}", about="An uploaded picture", answer="File"
    ),
    Operation(
        name="listModels", method="get", path="/models", about="Every model card", answer="Models"
    ),
    Operation(
        name="getModel",
        method="get",
        path="/models/{name}",
        about="One model card, by any of its names; a slash in it stays a slash",
        answer="Model",
    ),
    Operation(name="listKeys", method="get", path="/keys", about="API keys (admin)", answer="Keys"),
    Operation(
        name="createKey",
        method="post",
        path="/keys",
        about="Make an API key (admin)",
        status=201,
        body="CreateKey",
        answer="NewKey",
    ),
    Operation(
        name="revokeKey",
        method="delete",
        path="/keys/{id}",
        about="Revoke an API key (admin)",
        answer="Key",
    ),
    Operation(
        name="listDeliveries",
        method="get",
        path="/deliveries",
        about="Webhook messages (admin)",
        answer="Deliveries",
        query=[
            ("state", one_of(DeliveryState, "only these")),
            ("prediction_id", text("only those of this prediction")),
        ],
    ),
    Operation(
        name="redeliver",
        method="post",
        path="/deliveries/{id}/redeliver",
        about="Send a webhook message again (admin)",
        status=202,
        answer="Delivery",
    ),
    Operation(
        name="listDevices",
        method="get",
        path="/devices",
        about="Engines and what they are doing",
        answer="Engines",
    ),
    Operation(
        name="listChannels",
        method="get",
        path="/channels",
        about="Upstream channels and how they are doing (admin)",
        answer="Channels",
    ),
    Operation(
        name="listAttempts",
        method="get",
        path="/attempts",
        about="Submissions at providers (admin)",
        answer="Attempts",
        query=[
            ("state", one_of(AttemptState, "only these")),
            ("channel", text("only those at this one")),
        ],
    ),
    Operation(
        name="resolveAttempt",
        method="post",
        path="/attempts/{id}/resolve",
        about="Tell what became of an unknown submission (admin)",
        body="Resolution",
        answer="Attempt",
    ),
    Operation(
        name="getUsage",
        method="get",
        path="/usage",
        about="Spending by key, model, channel and day; of all keys for an admin",
        answer="Usage",
        more=[("text/csv", text("a row each, as in `results`"))],
        query=[
            ("start", moment("a month before `end` where it is not given")),
            ("end", moment("now where it is not given")),
            ("format", text("the answer as CSV", enum=["csv"])),
        ],
    ),
    Operation(
        name="listPrices",
        method="get",
        path="/prices",
        about="Prices, every version (admin)",
        answer="Prices",
    ),
    Operation(
        name="createPrice",
        method="post",
        path="/prices",
        about="Set a price (admin)",
        status=201,
        body="CreatePrice",
        answer="Price",
    ),
    Operation(
        name="describe",
        method="get",
        path="/openapi.json",
        about="This document",
        more=[(JSON_MIME, plain("object"))],
        is_free=True,
    ),
    Operation(
        name="showDocs",
        method="get",
        path="/docs",
        about="The same for people",
        more=[("text/html", text())],
        is_free=True,
    ),
)


def described(one: Operation) -> dict[str, JSON]:
    """An operation as an Operation Object."""
    parameters = [
        *([_parameter(one.in_path, "path", text())] if one.in_path else []),
        *(_parameter(name, "query", schema) for name, schema in one.query),
        *(_parameter(name, "header", schema) for name, schema in one.headers),
    ]
    good: dict[str, JSON] = {"description": "done"}
    answers = {mime: {"schema": schema} for mime, schema in one.more}
    if one.answer:
        answers = {JSON_MIME: {"schema": ref(one.answer)}, **answers}
    if answers:
        good["content"] = answers
    if one.told:
        good["headers"] = {name: {"schema": schema} for name, schema in one.told}
    responses: dict[str, JSON] = {
        str(one.status): good,
        **{str(status): {"description": about} for status, about in one.also},
        "default": {"$ref": "#/components/responses/Error"},
    }
    operation: dict[str, JSON] = {
        "operationId": one.name,
        "summary": one.about,
        "responses": responses,
    }
    if parameters:
        operation["parameters"] = parameters
    content = {JSON_MIME: {"schema": ref(one.body)}} if one.body else one.content
    if content:
        operation["requestBody"] = {"required": True, "content": content}
    if one.is_free:
        operation["security"] = []
    return operation


def _parameter(name: str, place: str, schema: Schema) -> dict[str, JSON]:
    about = schema.get("description")
    bare = {word: value for word, value in schema.items() if word != "description"}
    found: dict[str, JSON] = {"name": name, "in": place, "schema": bare}
    if about:
        found["description"] = about
    return {**found, "required": True} if place == "path" else found
