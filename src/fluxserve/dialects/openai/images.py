"""Generations and edits: asked, made, waited for or streamed.

body -> Asked, pictures -> one prediction for each `outputs_max` pictures -> wait | stream -> answer
"""

import asyncio
import base64
import hashlib
import json
import math
import re
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from fluxserve.core.access import Caller
from fluxserve.core.errors import (
    ErrorCode,
    Failure,
    FluxserveError,
    InvalidRequest,
    NotFound,
    Problem,
    Rule,
    from_failure,
)
from fluxserve.core.events import EventKind
from fluxserve.core.ids import to_uuid
from fluxserve.core.inputs import load_input
from fluxserve.core.ports import Idempotency, Query
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import JSON, ImageInput, ImageParams, Origin, Task
from fluxserve.dialects.base import Services, bearer, failed, read_object
from fluxserve.dialects.delivery import take_image
from fluxserve.dialects.openai import answers
from fluxserve.dialects.openai.answers import NAME
from fluxserve.dialects.openai.errors import error, error_headers, failure_of
from fluxserve.dialects.openai.forms import is_form, read_form
from fluxserve.dialects.openai.params import choose_model, to_params
from fluxserve.dialects.openai.reading import (
    Asked,
    Pictures,
    Source,
    digest,
    in_said_words,
    is_url,
    pictures_in,
    read,
)
from fluxserve.dialects.sse import stream
from fluxserve.dialects.wire import Answer

GENERATION = "image_generation"  # what names of stream events begin with
EDIT = "image_edit"
NO_STORE = {"Cache-Control": "no-store"}
REPEATS_SEEN = 50  # recent predictions among which a repeated call is looked for
# Answer before the client's own read timeout, so that it repeats the call and finds it running.
EARLY_S = 2.0
HOLD_MIN_S = 0.2


async def caller_of(services: Services, request: Request) -> Caller:
    """Unauthenticated for a missing or wrong `Authorization: Bearer KEY`."""
    return await services.keyring.caller(bearer(request))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call with everything that was read of it."""

    kind: str
    asked: Asked
    pictures: Pictures
    caller: Caller
    base: str  # how the caller knows this server
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The handlers under one mount."""

    services: Services
    mount: str

    async def generate(self, request: Request) -> Response:
        return await self._answer(request, GENERATION)

    async def edit(self, request: Request) -> Response:
        return await self._answer(request, EDIT)

    async def variation(self, request: Request) -> Response:
        """Retired by OpenAI itself."""
        await caller_of(self.services, request)
        raise NotFound("Variations are not made here: use /images/edits with a prompt.")

    async def _answer(self, request: Request, kind: str) -> Response:
        caller = await caller_of(self.services, request)
        await self.services.limiter.hit(caller, "create")
        call = await self._read(request, kind, caller)
        made = await self._repeated(request, call) or await self._create(request, call)
        headers = {**NO_STORE, "x-request-id": to_uuid(made[0].id)}
        if call.asked.flag("stream"):
            return stream(self._events(call, made[0].id), headers)
        hold_s, is_patient = _hold(request, self.services.http.wait_max_s)
        began_s = asyncio.get_running_loop().time()
        done = await self._wait(made, hold_s)
        if not all(prediction.is_terminal for prediction in done):
            # Less than was meant when the server goes down.
            waited_s = asyncio.get_running_loop().time() - began_s
            return _late(min(waited_s, hold_s), headers, is_patient=is_patient)
        for prediction in done:
            if failure := failure_of(prediction):
                # Work was done for this answer: a client that repeats the call would do it again.
                return _with(failed(failure, error, error_headers), headers, "false")
        body = await self._body(call, done, request)
        return Answer(body, headers=headers)

    # --- asked -----------------------------------------------------------------------------------

    async def _read(self, request: Request, kind: str, caller: Caller) -> Call:
        if is_form(request):
            body, pictures = await read_form(request, self.services.http)
        else:
            body = await read_object(request, self.services.http.body_max_bytes)
            pictures = pictures_in(body)
        asked = read(body)
        if not pictures.images and (kind == EDIT or pictures.mask is not None):
            raise _missing(pictures.name)
        return Call(
            kind=kind,
            asked=asked,
            pictures=pictures,
            caller=caller,
            base=self.services.links(request, self.mount).base,
            digest=await asyncio.to_thread(digest, asked, asked.text("model") or "", pictures),
        )

    async def _repeated(self, request: Request, call: Call) -> Sequence[Prediction]:
        """The predictions of the same call when a client says that it repeats it, or none.

        A client that lost its connection or its patience must not have the pictures made twice.
        """
        if request.headers.get("x-stainless-retry-count", "0").strip() in ("", "0"):
            return ()
        since = self.services.clock() - timedelta(seconds=2 * self.services.http.wait_max_s)
        rows = await self.services.predictions.page(
            Query(key_id=call.caller.key_id, dialect=NAME, created_after=since, limit=REPEATS_SEEN)
        )
        fitting = [
            row
            for row in rows
            if row.origin.key_id == call.caller.key_id
            and row.origin.extra.get("digest") == call.digest
            and row.status in (S.QUEUED, S.RUNNING, S.SUCCEEDED)
        ]
        if not fitting:
            return ()
        newest = fitting[0].origin.extra
        parts = [row for row in fitting if row.origin.extra.get("call") == newest.get("call")]
        return parts[::-1] if len(parts) == newest.get("parts") else ()

    async def _create(self, request: Request, call: Call) -> Sequence[Prediction]:
        """A call for more pictures than the model makes at once becomes several predictions."""
        asked, pictures, caller = call.asked, call.pictures, call.caller
        task = Task.TEXT_TO_IMAGE
        if pictures.images:
            task = Task.EDIT if pictures.mask is None else Task.FILL
        model = choose_model(self.services, asked.text("model"), task, caller)
        card = self.services.catalog.card(model)
        caller.may_use(card.id)
        urls = dict(pictures.urls)
        images = await self._take(call)
        mask = await self._take_mask(call, images)
        whole = to_params(asked, model, card, images, mask)
        parts = _split(whole, card.limits.outputs_max)
        origin = Origin(
            dialect=NAME,
            model_name=asked.text("model") or model,
            key_id=caller.key_id,
            tenant_id=caller.tenant_id,
            base_url=call.base,
            mount=self.mount,
            said={**asked.said, **urls},
            extra={"digest": call.digest, "call": uuid.uuid4().hex, "parts": len(parts)},
        )
        made: list[Prediction] = []
        try:
            for number, params in enumerate(parts):
                name = _idempotency(request, call.digest, number)
                made.append(
                    await self.services.predictions.create(params, origin, caller, idempotency=name)
                )
        except FluxserveError as problem:
            for prediction in made:
                await self.services.predictions.cancel(prediction.id)
            if isinstance(problem, InvalidRequest):
                raise in_said_words(asked, pictures, problem) from problem
            raise
        return made

    async def _take(self, call: Call) -> tuple[ImageInput, ...]:
        """Store the pictures one by one, letting go of each; InvalidRequest."""
        taken = []
        while call.pictures.images:
            name, source = call.pictures.images.pop(0)
            taken.append(await self._take_one(call, name, source))
        return tuple(taken)

    async def _take_one(self, call: Call, name: str, source: Source) -> ImageInput:
        if isinstance(source, bytes):
            return await self.services.intake.take(source, name)
        return await take_image(self.services, source, name, call.caller, call.base)

    async def _take_mask(self, call: Call, images: Sequence[ImageInput]) -> ImageInput | None:
        """The mask with white where the picture is to change; InvalidRequest."""
        source, call.pictures.mask = call.pictures.mask, None
        if source is None:
            return None
        if isinstance(source, str):
            if is_url(source):
                far = await take_image(self.services, source, "mask", call.caller, call.base)
                source = (await load_input(self.services.intake, far)).data
            else:
                taken = await self.services.intake.take_text(source, "mask")
                assert taken.blob is not None, "inline pictures are stored"
                source = await self.services.blobs.get(taken.blob.key)
        data = await asyncio.to_thread(self.services.repaint_mask, source, "mask")
        mask = await self.services.intake.take(data, "mask")
        first = images[0].blob
        if first and first.width and mask.blob:
            theirs, ours = (mask.blob.width, mask.blob.height), (first.width, first.height)
            if theirs != ours:
                words = "it must have the size of the first image, "
                words += f"{ours[0]}x{ours[1]}, not {theirs[0]}x{theirs[1]}"
                raise InvalidRequest.of([Problem(field="mask", rule=Rule.OTHER, message=words)])
        return mask

    # --- answered --------------------------------------------------------------------------------

    async def _wait(self, made: Sequence[Prediction], seconds: float) -> list[Prediction]:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        return [
            await self.services.predictions.wait(prediction.id, max(0.0, end - loop.time()))
            for prediction in made
        ]

    async def _body(
        self, call: Call, done: Sequence[Prediction], request: Request
    ) -> dict[str, JSON]:
        entries: list[Mapping[str, JSON]] = []
        links = self.services.links(request, self.mount)
        for prediction in done:
            if call.asked.text("response_format") == "url":
                linked = zip(prediction.outputs, links.outputs(prediction), strict=True)
                entries += [
                    answers.entry(prediction, image, url=url)
                    for image, url in linked
                    if not image.flagged
                ]
                continue
            for image in prediction.shown:
                data = await self.services.blobs.get(image.blob.key)
                text = await asyncio.to_thread(base64.b64encode, data)
                entries.append(answers.entry(prediction, image, b64_json=text.decode()))
        return answers.images(done, entries)

    async def _events(self, call: Call, prediction_id: str) -> AsyncIterator[ServerSentEvent]:
        """Previews, at most as many as were asked for, then the picture or the error."""
        left = call.asked.whole("partial_images") or 0
        service, sent = self.services.predictions, 0
        try:
            async for event in service.follow(prediction_id):
                if event.kind is not EventKind.PREVIEW or sent == left or event.data.get("index"):
                    continue
                live = self.services.live.get(prediction_id)
                if live is not None and live.preview is not None:
                    now = await service.get(prediction_id)
                    at = event.at.timestamp()
                    yield answers.partial(call.kind, now, live.preview, sent, at)
                    sent += 1
            now = await service.get(prediction_id)
            if not now.is_terminal:
                text = "The server is going down; the picture will be made when it is back."
                yield answers.broken(Failure(code=ErrorCode.UNAVAILABLE, message=text))
                return
            if failure := failure_of(now):
                yield answers.broken(failure)
                return
            data = await self.services.blobs.get(now.shown[0].blob.key)
        except FluxserveError as problem:  # deleted while it was watched
            yield answers.broken(problem.failure())
            return
        yield answers.completed(call.kind, now, data, self.services.clock().timestamp())


S = PredictionStatus


def _split(whole: ImageParams, most: int) -> list[ImageParams]:
    """Parts of at most `most` pictures each; picture i of all has seed + i."""
    count = whole.num_outputs or 1
    if count <= most:
        return [whole]
    parts = []
    for done in range(0, count, most):
        seed = whole.seed if whole.seed is None or whole.seed < 0 else whole.seed + done
        parts.append(replace(whole, num_outputs=min(most, count - done), seed=seed))
    return parts


def _hold(request: Request, most_s: float) -> tuple[float, bool]:
    """Seconds until an answer must go out, and whether the client would repeat the call then."""
    is_patient = "x-stainless-retry-count" in request.headers
    for name in ("x-stainless-read-timeout", "x-stainless-timeout"):
        text = request.headers.get(name, "").strip()
        if is_patient and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) and float(text) > 0:
            seconds = float(text)
            early = seconds - min(EARLY_S, seconds / 4)
            return max(HOLD_MIN_S, min(early, most_s)), is_patient
    return most_s, is_patient


def _late(waited_s: float, headers: Mapping[str, str], *, is_patient: bool) -> Response:
    id_ = headers["x-request-id"]
    text = f"The picture is not finished after {math.ceil(waited_s)} s; it goes on as {id_}."
    failure = Failure(code=ErrorCode.TIMED_OUT, message=text)
    answer = failed(failure, error, error_headers)
    return _with(answer, headers, "true" if is_patient else "false")


def _with(answer: Response, headers: Mapping[str, str], again: str) -> Response:
    answer.headers.update(headers)
    if answer.status_code != 400:
        answer.headers["x-should-retry"] = again
    return answer


def _idempotency(request: Request, digest_: str, number: int) -> Idempotency | None:
    key = request.headers.get("idempotency-key", "").strip()
    if not key:
        return None
    if len(key) > 255:
        raise from_failure(
            Failure(
                code=ErrorCode.INVALID_REQUEST,
                message="Idempotency-Key: at most 255 characters.",
                field="Idempotency-Key",
            )
        )
    if number:
        key = hashlib.sha256(json.dumps([key, number]).encode()).hexdigest()
    return Idempotency(key=key, body_hash=digest_)


def _missing(name: str) -> InvalidRequest:
    problem = Problem(field=name, rule=Rule.REQUIRED, message=f"{name} is required")
    return InvalidRequest.of([problem])
