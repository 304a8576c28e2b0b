"""A fake OpenAI Images API: it answers with the picture, so there is nothing to poll.

POST {prefix}/v1/images/generations   JSON
POST {prefix}/v1/images/edits         multipart
GET  {prefix}/v1/models               list of models
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from .provider import FakeProvider, Work, origin_of
from .script import Act, Outcome, Output, Submit

ERRORS: dict[Submit, tuple[int, str, str, str | None]] = {
    Submit.WRONG_KEY: (401, "Incorrect API key", "invalid_request_error", "invalid_api_key"),
    Submit.NO_CREDIT: (
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    Submit.UNKNOWN_MODEL: (
        404,
        "The model does not exist",
        "invalid_request_error",
        "model_not_found",
    ),
    Submit.INVALID: (400, "Invalid size '12x12'.", "invalid_request_error", "invalid_value"),
    Submit.RATE_LIMITED: (
        429,
        "Rate limit reached",
        "rate_limit_exceeded",
        "rate_limit_exceeded",
    ),
    Submit.MODERATED: (
        400,
        "Your request was rejected by the safety system.",
        "image_generation_user_error",
        "moderation_blocked",
    ),
}


@dataclass(slots=True, kw_only=True)
class FakeOpenai(FakeProvider):
    """Speaks OpenAI's Images API as its contract writes it down."""

    can_list: bool = False

    def routes(self) -> Sequence[BaseRoute]:
        inner = [
            Route("/images/generations", self.generations, methods=["POST"]),
            Route("/images/edits", self.edits, methods=["POST"]),
            Route("/models", self.models),
        ]
        return [Mount(f"{self.prefix}/v1", routes=inner)]

    def has_key(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.key}"

    def refusal(self, fault: Submit, act: Act) -> Response:
        if fault is Submit.ERROR_INSIDE:
            return JSONResponse({"error": {"message": "upstream exploded", "type": "server_error"}})
        status, message, kind, code = ERRORS[fault]
        error = {"message": message, "type": kind, "param": None, "code": code}
        headers = {"retry-after": str(act.retry_after_s)} if status == 429 else None
        return JSONResponse({"error": error}, status, headers=headers)

    async def generations(self, request: Request) -> Response:
        values = await request.json()
        return await self.submit(request, model=values["model"], values=values, webhook=None)

    async def edits(self, request: Request) -> Response:
        async with request.form() as form:
            values: dict[str, Any] = {}
            for name, part in form.multi_items():
                if isinstance(part, str):
                    values[name] = part
                else:
                    self.uploads[f"{name}-{len(self.uploads)}"] = await part.read()
        return await self.submit(request, model=values["model"], values=values, webhook=None)

    def accepted(self, work: Work, request: Request) -> Response:
        work.polls += work.act.pending_polls + 1
        if work.act.outcome is not Outcome.SUCCEED:
            moderated = work.act.outcome in {Outcome.MODERATED_INPUT, Outcome.MODERATED_OUTPUT}
            if moderated:
                return self.refusal(Submit.MODERATED, work.act)
            error = {"message": work.act.reason, "type": "server_error", "param": None}
            return JSONResponse({"error": error | {"code": None}}, 500)
        return JSONResponse(self.render(work, origin_of(request)))

    async def models(self, request: Request) -> Response:
        self.note(request)
        if not self.has_key(request):
            return self.refusal(Submit.WRONG_KEY, Act())
        entry = {"id": "gpt-image-1", "object": "model", "created": 1, "owned_by": "fake"}
        return JSONResponse({"object": "list", "data": [entry]})

    def render(self, work: Work, origin: str) -> dict[str, Any]:
        count = int(work.input.get("n") or 1)
        if work.input.get("response_format") == "url" or work.act.output not in {
            Output.OK,
            Output.TEXT,
        }:
            data = [{"url": link} for link in self.links(work, origin, count)]
        elif work.act.output is Output.TEXT:
            data = [{"b64_json": base64.b64encode(b"not a picture").decode()}]
        else:
            pictures = [self.picture(work, index) for index in range(count)]
            data = [{"b64_json": base64.b64encode(p).decode()} for p in pictures]
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        return {"created": int(work.created_at), "data": data, "usage": usage}
