"""A fake BFL, or a reseller of it with a path prefix and a Bearer key.

POST {prefix}/v1/{model}             submit; prefix may be "/flux"
GET  {prefix}/v1/get_result?id=      poll, without a key
GET  {prefix}/v1/credits             balance
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from .provider import FakeProvider, Work, origin_of
from .script import Act, Outcome, Submit

MODELS = frozenset(
    {
        "flux-dev",
        "flux-pro",
        "flux-pro-1.1",
        "flux-pro-1.1-ultra",
        "flux-kontext-pro",
        "flux-kontext-max",
        "flux-2-pro",
    }
)
ERRORS: dict[Submit, tuple[int, Any]] = {
    Submit.WRONG_KEY: (403, "Not authenticated - Invalid Authentication"),
    Submit.NO_CREDIT: (402, "Insufficient credits. Please add credits to your account."),
    Submit.UNKNOWN_MODEL: (404, "Not Found"),
    Submit.INVALID: (
        422,
        [
            {
                "loc": ["body", "width"],
                "msg": "Input should be a multiple of 32",
                "type": "multiple_of",
            }
        ],
    ),
    Submit.RATE_LIMITED: (429, "Too many active tasks"),
    Submit.MODERATED: (422, "The prompt was moderated"),
}


@dataclass(slots=True, kw_only=True)
class FakeBfl(FakeProvider):
    """Speaks the BFL HTTP API as its contract writes it down."""

    can_list: bool = False  # there is no list

    def routes(self) -> Sequence[BaseRoute]:
        inner = [
            Route("/get_result", self.get),
            Route("/credits", self.credits),
            Route("/{model:path}", self.create, methods=["POST"]),
        ]
        return [Mount(f"{self.prefix}/v1", routes=inner)]

    def new_id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{id(self)}-{len(self.works)}"))

    def has_key(self, request: Request) -> bool:
        given = request.headers.get("x-key") or request.headers.get("authorization", "")
        return given.removeprefix("Bearer ") == self.key

    def refusal(self, fault: Submit, act: Act) -> Response:
        if fault is Submit.ERROR_INSIDE:
            return JSONResponse({"error": {"message": "upstream exploded", "type": "500"}})
        status, detail = ERRORS[fault]
        headers = {"retry-after": str(act.retry_after_s)} if status == 429 else None
        return JSONResponse({"detail": detail}, status, headers=headers)

    def accepted(self, work: Work, request: Request) -> Response:
        origin = work.act.poll_origin or origin_of(request)
        url = f"{origin}{self.prefix}/v1/get_result?id={work.id}"
        cost = {"cost": 4.0, "input_mp": 0.0, "output_mp": 1.05}
        return JSONResponse({"id": work.id, "polling_url": url} | cost)

    async def create(self, request: Request) -> Response:
        model = request.path_params["model"]
        values = await request.json()
        if model not in MODELS:
            self.note(request)
            self.refused += 1
            return self.refusal(Submit.UNKNOWN_MODEL, Act())
        return await self.submit(
            request, model=model, values=values, webhook=values.get("webhook_url")
        )

    async def get(self, request: Request) -> Response:
        self.note(request)
        work = self.works.get(request.query_params.get("id", ""))
        if work is None:
            return JSONResponse(self.blank("nope", "Task not found"), 404)
        return await self.poll(request, work)

    async def credits(self, request: Request) -> Response:
        self.note(request)
        if not self.has_key(request):
            return self.refusal(Submit.WRONG_KEY, Act())
        return JSONResponse({"credits": 1234.5})

    def blank(self, job_id: str, status: str) -> dict[str, Any]:
        empty = {"result": None, "progress": None, "details": None, "preview": None}
        return {"id": job_id, "status": status} | empty

    def form(self, work: Work) -> str:
        """BFL answers jpeg where nothing was said, but Kontext answers png."""
        if work.input.get("output_format"):
            return FakeProvider.form(self, work)
        return "png" if "kontext" in work.model else "jpeg"

    def render(self, work: Work, origin: str) -> dict[str, Any]:
        body = self.blank(self.shown_id(work), "Meditating" if self.strange(work) else "Pending")
        end = work.outcome
        if self.strange(work):
            return body
        match end:
            case None:
                return body | {"progress": 0.5}
            case Outcome.SUCCEED:
                links = self.links(work, origin)
                result = {
                    "sample": next(iter(links), None),
                    "prompt": work.input.get("prompt", ""),
                    "seed": work.seed,
                    "start_time": work.created_at,
                    "end_time": work.created_at + work.act.work_s,
                    "duration": work.act.work_s,
                }
                return body | {"status": "Ready", "result": result}
            case Outcome.MODERATED_INPUT:
                reasons = {"Moderation Reasons": ["Derivative Works Filter"]}
                return body | {"status": "Request Moderated", "details": reasons}
            case Outcome.MODERATED_OUTPUT:
                reasons = {"Moderation Reasons": ["Safety Filter"]}
                return body | {"status": "Content Moderated", "details": reasons}
        return body | {"status": "Error", "details": {"error": work.act.reason}}

    def webhook_body(self, work: Work, origin: str) -> dict[str, Any]:
        return self.render(work, origin) | {"task_id": work.id}
