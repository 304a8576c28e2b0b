"""The shapes of the native API as JSON Schema: what is asked and what is answered.

`tests/dialects/native/test_openapi.py` holds them against real answers, property by property.
"""

from collections.abc import Mapping

from fluxserve.core.attempts import AttemptState
from fluxserve.core.deliveries import DeliveryState
from fluxserve.core.errors import ErrorCode, Rule
from fluxserve.core.events import EventKind
from fluxserve.core.prediction import PredictionStatus
from fluxserve.core.request import JSON, Approximation, OutputFormat, Task
from fluxserve.dialects.native.admin import KEY_FIELDS
from fluxserve.dialects.native.money import DECISION_FIELDS, PRICE_FIELDS
from fluxserve.dialects.native.shapes import (
    Schema,
    answered,
    asked,
    event,
    flag,
    link,
    listed,
    moment,
    number,
    one_of,
    or_null,
    plain,
    ref,
    results,
    table_of,
    text,
    whole,
)
from fluxserve.dialects.native.words import EVENTS, FIELDS

SIDES: dict[str, JSON] = {
    side: plain("integer", minimum=0, maximum=2048, default=0)
    for side in ("top", "bottom", "left", "right")
}
LORA: Schema = {
    "type": "object",
    "properties": {
        "path": text("a file of the server, or a URL"),
        "scale": plain("number", minimum=-4, maximum=4, default=1.0),
    },
    "required": ["path"],
    "additionalProperties": False,
}
PREDICTION: dict[str, Schema] = {
    "id": text("32 hex digits"),
    "status": one_of(PredictionStatus),
    "model": text("the id of its model card"),
    "dialect": text("the API that it was asked through"),
    "request": ref("ImageRequest"),
    "outputs": listed(ref("Output")),
    "error": or_null(ref("Problem")),
    "progress": number("0 to 1"),
    "logs": text(),
    "metrics": {"type": "object", "description": "seconds and counts, as the engine tells them"},
    "engine": text("who has it: an engine or an upstream channel"),
    "served_by": or_null(text("the model that did it, where it is known")),
    "attempt": whole("how often it was started"),
    "priority": whole(),
    "created_at": moment(),
    "started_at": or_null(moment()),
    "finished_at": or_null(moment()),
    "deadline_at": or_null(moment()),
    "data_removed": flag("its texts and pictures are gone"),
    "urls": answered("", get=link(), cancel=link(), events=link()),
    "queue_position": whole("how many go before it; not in webhooks"),
    "eta_s": or_null(number("seconds until it may be done; not in webhooks")),
}
OUTLOOK = ("queue_position", "eta_s")  # not in webhooks
KEY: dict[str, Schema] = {
    "id": text(),
    "name": text(),
    "prefix": text("how the key begins"),
    "is_admin": flag(),
    "models": listed(text(), "ids of model cards; empty: all"),
    "rate_per_minute": whole("0: as the settings say"),
    "concurrency_max": whole("0: as the settings say"),
    "budget": number("USD per month; 0: none"),
    "created_at": moment(),
    "expires_at": or_null(moment()),
    "revoked_at": or_null(moment()),
    "last_used_at": or_null(moment()),
}
REQUESTS: dict[str, Schema] = {
    "Create": asked(
        FIELDS,
        "What to make. Of unknown fields none is taken",
        images={"items": text("a URL, a data URI, base64, or a link from POST /files")},
        margins={"properties": SIDES, "additionalProperties": False},
        loras={"items": LORA},
        webhook_events={"items": text(enum=list(EVENTS))},
    ),
    "CreateKey": asked(KEY_FIELDS, "A new key"),
    "CreatePrice": asked(
        PRICE_FIELDS,
        "A price from `valid_from` on",
        options={"additionalProperties": number("USD")},
        valid_from={"format": "date-time"},
    ),
    "Resolution": asked(DECISION_FIELDS, "What became of a submission that nobody could tell of"),
}
PREDICTIONS: dict[str, Schema] = {
    "Prediction": {
        **answered("One request and its whole life; the body of webhooks too", **PREDICTION),
        "required": [name for name in PREDICTION if name not in OUTLOOK],
    },
    "Predictions": results(
        "Prediction",
        "A page of predictions, newest first",
        next_cursor=or_null(text("`cursor` of the next page; null: this was the last")),
    ),
    "ImageRequest": answered(
        "What is made: complete, the seed drawn",
        task=one_of(Task),
        prompt=text(),
        negative_prompt=text(),
        images=listed(
            {
                "oneOf": [
                    answered("fetched when its turn comes", url=link()),
                    answered("here", width=whole("px"), height=whole("px"), mime=text()),
                ]
            }
        ),
        has_mask=flag(),
        width=or_null(whole("px; null until an input picture that decides it is read")),
        height=or_null(whole("px")),
        num_steps=whole(),
        guidance=number(),
        strength=number(),
        seed=whole("output i uses seed + i"),
        num_outputs=whole(),
        output_format=one_of(OutputFormat),
        output_quality=whole(),
        go_fast=flag(),
        approximate=or_null(listed(one_of(Approximation))),
        preview_steps=whole(),
    ),
    "Output": answered(
        "A finished picture",
        url=link("signed: it needs no key and lives as long as the file"),
        width=whole("px"),
        height=whole("px"),
        mime=text(),
        size_bytes=whole(),
        seed=whole(),
        flagged=flag("the content check took offence"),
    ),
    "Error": answered("What went wrong", error=ref("Problem")),
    "Problem": answered(
        "One error, or why a prediction failed",
        code=one_of(ErrorCode),
        message=text("for people"),
        field=or_null(text("the first field that is wrong")),
        problems=listed(
            answered("", field=text(), rule=one_of(Rule), message=text()), "every bad field"
        ),
    ),
    "File": answered(
        "An upload",
        id=text(),
        name=text(),
        mime=text(),
        size_bytes=whole(),
        width=whole("px"),
        height=whole("px"),
        url=link("an input picture for every dialect"),
        created_at=moment(),
        expires_at=moment("gone after this, unless something uses it"),
    ),
    "Models": results("Model", "Every model card"),
    "Model": answered(
        "What a model is and what may be asked of it",
        id=text("owner/name"),
        title=text(),
        description=text(),
        tasks=listed(one_of(Task)),
        aliases=listed(text(), "other public names, of every dialect"),
        is_open=flag("its weights can be had"),
        weights=text("where its weights are; empty: nowhere"),
        license=text(),
        license_url=text(),
        engine=text("who serves it just now; empty: nobody"),
        defaults=answered(
            "",
            num_steps=whole(),
            guidance=number(),
            size=text("WIDTHxHEIGHT in px"),
            output_format=one_of(OutputFormat),
            output_quality=whole(),
        ),
        limits=answered(
            "Of pairs the first is the least and the second the most",
            num_steps=listed(whole()),
            guidance=listed(number()),
            side_px=listed(whole()),
            pixels_max=whole(),
            multiple_px=whole("sides are multiples of it"),
            images=listed(whole()),
            num_outputs_max=whole(),
            prompt_max=whole("characters"),
        ),
        aspect_ratios=table_of(text("WIDTHxHEIGHT in px")),
        urls=answered("", get=link()),
    ),
}
STREAMED: dict[EventKind, Schema] = {
    EventKind.QUEUED: event(EventKind.QUEUED, "it waits for its turn"),
    EventKind.STARTED: event(EventKind.STARTED, "it is being made", attempt=whole()),
    EventKind.REQUEUED: event(EventKind.REQUEUED, "it waits once more", attempt=whole()),
    EventKind.PROGRESS: event(
        EventKind.PROGRESS,
        "how far it is",
        step=whole(),
        total=whole(),
        eta_s=or_null(number()),
        queue_position=whole(),
    ),
    EventKind.PREVIEW: event(
        EventKind.PREVIEW,
        "a small picture of how it looks by now",
        step=whole(),
        index=whole(),
        image=text("data URI"),
    ),
    EventKind.LOG: event(EventKind.LOG, "a line of the log", text=text()),
    EventKind.OUTPUT: event(
        EventKind.OUTPUT,
        "a picture is finished",
        index=whole(),
        attempt=whole(),
        url=link(),
        mime=text(),
        seed=whole(),
    ),
    EventKind.FINISHED: event(
        EventKind.FINISHED,
        "the last one",
        status=one_of(PredictionStatus),
        prediction=ref("Prediction"),
    ),
}
OPERATED: dict[str, Schema] = {
    "Key": answered("An API key, without its secret", **KEY),
    "Keys": results("Key", "API keys"),
    "NewKey": answered("A key that was just made", **KEY, secret=text("told this once")),
    "Delivery": answered(
        "A webhook message",
        id=text("the webhook-id of every try"),
        prediction_id=text(),
        kind=text(enum=["start", "completed"]),
        url=link(),
        state=one_of(DeliveryState),
        tries=whole(),
        last_status=whole("HTTP status of the last try; 0: no answer"),
        last_error=text(),
        created_at=moment(),
        next_at=moment(),
    ),
    "Deliveries": results("Delivery", "Webhook messages"),
    "Engine": answered(
        "An engine of this server",
        engine=text(),
        capacity=whole("predictions that it runs at once"),
        running=whole(),
        trouble=or_null(text("why it cannot work just now")),
        devices=listed(ref("Device")),
    ),
    "Device": answered(
        "A device of an engine",
        device=text(),
        name=text(),
        model=text(),
        dtype=text(),
        state=text(enum=["starting", "ready", "refused"]),
        running=whole(),
        restarts=whole(),
        busy_s=number(),
    ),
    "Engines": results("Engine", "Engines and what they are doing"),
    "Channel": answered(
        "A channel to a provider",
        name=text(),
        kind=text(),
        state=text(),
        trouble=text(),
        rests_s=number("seconds until it is tried again"),
        open=whole("submissions that the provider may be working on"),
        submitted=whole(),
        refused=whole(),
        unknown=whole(),
        resubmitted=whole(),
        unresolved=whole(),
        concurrency=whole(),
        priority=whole(),
        weight=number(),
        models=table_of(text(), "our name of a model: the provider's"),
    ),
    "Channels": results("Channel", "Upstream channels"),
    "Attempt": answered(
        "A submission at a provider",
        id=text(),
        prediction_id=text(),
        channel=text(),
        model=text(),
        state=one_of(AttemptState),
        upstream_id=or_null(text("the provider's id of the job")),
        part=whole(),
        parts=whole(),
        polls=whole(),
        usd=number(),
        error=or_null(text()),
        created_at=moment(),
        next_at=or_null(moment()),
        finished_at=or_null(moment()),
    ),
    "Attempts": results("Attempt", "Submissions at providers"),
    "Spending": answered(
        "What one key spent on one model at one channel on one day",
        day=text(format="date"),
        key_id=or_null(text()),
        model=text(),
        channel=text(),
        predictions=whole(),
        usd=number(),
    ),
    "Usage": results("Spending", "Spending by key, model, channel and day", total_usd=number()),
    "Price": answered(
        "What a picture costs",
        id=text(),
        model=text("* for all"),
        channel=text("* for all"),
        per_image=number("USD"),
        per_megapixel=number("USD"),
        per_step=number("USD"),
        options=table_of(number("USD"), "fields of a request"),
        valid_from=moment(),
    ),
    "Prices": results("Price", "Every version of every price"),
}


def event_name(kind: EventKind) -> str:
    """The schema of the data of an event."""
    return f"{kind.value.title()}Event"


SCHEMAS: Mapping[str, Schema] = {
    **REQUESTS,
    **PREDICTIONS,
    **{event_name(kind): schema for kind, schema in STREAMED.items()},
    **OPERATED,
}
