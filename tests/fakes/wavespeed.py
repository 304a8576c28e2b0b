"""A fake WaveSpeed.

POST {prefix}/api/v3/{model}                   submit
GET  {prefix}/api/v3/predictions/{id}[/result] poll
POST {prefix}/api/v3/predictions               list
POST {prefix}/api/v3/predictions/delete        delete, which cancels
POST {prefix}/api/v3/media/upload/binary       upload
GET  {prefix}/api/v3/balance                   balance
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from .provider import FakeProvider, Work, origin_of
from .replicate import iso
from .script import Act, Outcome, Submit

ERRORS: dict[Submit, tuple[int, str]] = {
    Submit.WRONG_KEY: (401, "invalid api key"),
    Submit.NO_CREDIT: (402, "insufficient balance"),
    Submit.UNKNOWN_MODEL: (404, "model not found"),
    Submit.INVALID: (400, "size must be between 256 and 1536 per dimension"),
    Submit.RATE_LIMITED: (429, "too many requests"),
    Submit.MODERATED: (400, "content moderation"),
}


@dataclass(slots=True, kw_only=True)
class FakeWavespeed(FakeProvider):
    """Speaks the WaveSpeed HTTP API, version 3, as its contract writes it down."""

    def routes(self) -> Sequence[BaseRoute]:
        inner = [
            Route("/predictions", self.listing, methods=["POST"]),
            Route("/predictions/delete", self.delete, methods=["POST"]),
            Route("/predictions/{id}/cancel", self.no_such_path, methods=["POST"]),
            Route("/predictions/{id}", self.get),
            Route("/predictions/{id}/result", self.get),
            Route("/media/upload/binary", self.upload, methods=["POST"]),
            Route("/balance", self.balance),
            Route("/{model:path}", self.create, methods=["POST"]),
        ]
        return [Mount(f"{self.prefix}/api/v3", routes=inner)]

    def new_id(self) -> str:
        return hashlib.md5(f"{id(self)}-{len(self.works)}".encode()).hexdigest()

    def has_key(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.key}"

    def refusal(self, fault: Submit, act: Act) -> Response:
        if fault is Submit.ERROR_INSIDE:
            return JSONResponse({"code": 500, "message": "upstream exploded", "data": None})
        status, message = ERRORS[fault]
        headers = {"retry-after": str(act.retry_after_s)} if status == 429 else None
        return JSONResponse({"code": status, "message": message}, status, headers=headers)

    def envelope(self, data: object) -> dict[str, Any]:
        return {"code": 200, "message": "success", "data": data}

    def accepted(self, work: Work, request: Request) -> Response:
        body = self.task(work, origin_of(request)) | {"status": "created", "outputs": []}
        return JSONResponse(self.envelope(body))

    async def create(self, request: Request) -> Response:
        values = await request.json()
        webhook = request.query_params.get("webhook")
        model = request.path_params["model"]
        return await self.submit(request, model=model, values=values, webhook=webhook)

    async def get(self, request: Request) -> Response:
        self.note(request)
        if not self.has_key(request):
            return self.refusal(Submit.WRONG_KEY, Act())
        return await self.poll(request, self.works.get(request.path_params["id"]))

    async def listing(self, request: Request) -> Response:
        self.note(request)
        if not self.has_key(request):
            return self.refusal(Submit.WRONG_KEY, Act())
        if not self.can_list:
            return self.refusal(Submit.UNKNOWN_MODEL, Act())
        asked = await request.json()
        page, size = int(asked.get("page", 1)), int(asked.get("page_size", 100))
        model = asked.get("model")
        found = [w for w in reversed(self.works.values()) if model in {None, w.model}]
        shown = found[(page - 1) * size : page * size]
        items = [self.task(work, origin_of(request)) for work in shown]
        return JSONResponse(self.envelope({"page": page, "total": len(found), "items": items}))

    async def no_such_path(self, request: Request) -> Response:
        """The contract knows no way to cancel but to delete."""
        self.note(request)
        return JSONResponse({"code": 404, "message": "not found"}, 404)

    async def delete(self, request: Request) -> Response:
        self.note(request)
        asked = await request.json()
        works = [self.works[i] for i in asked["ids"] if i in self.works]
        for work in works:
            work.canceled = work.canceled or work.outcome is None
        return JSONResponse(self.envelope({"deleted_count": len(works)}))

    async def upload(self, request: Request) -> Response:
        self.note(request)
        async with request.form() as form:
            content = form["file"]
            assert not isinstance(content, str)
            data = await content.read()
            name = content.filename or "upload"
        self.uploads[name] = data
        url = f"{origin_of(request)}/uploads/{name}"
        ticket = {"type": "image", "download_url": url, "filename": name, "size": len(data)}
        return JSONResponse(self.envelope(ticket))

    async def balance(self, request: Request) -> Response:
        self.note(request)
        if not self.has_key(request):
            return self.refusal(Submit.WRONG_KEY, Act())
        return JSONResponse(self.envelope({"balance": 12.34}))

    def form(self, work: Work) -> str:
        return str(work.input.get("output_format") or "jpeg")

    def render(self, work: Work, origin: str) -> dict[str, Any]:
        return self.envelope(self.task(work, origin))

    def webhook_body(self, work: Work, origin: str) -> dict[str, Any]:
        return self.task(work, origin)

    def task(self, work: Work, origin: str) -> dict[str, Any]:
        poll_origin = work.act.poll_origin or origin
        body: dict[str, Any] = {
            "id": self.shown_id(work),
            "model": work.model,
            "input": dict(work.input),
            "outputs": [],
            "urls": {"get": f"{poll_origin}{self.prefix}/api/v3/predictions/{work.id}/result"},
            "has_nsfw_contents": [],
            "status": "dreaming" if self.strange(work) else "processing",
            "created_at": iso(work.created_at),
            "error": "",
            "code": 0,
            "executionTime": 0,
            "timings": {"inference": 0},
        }
        end = work.outcome
        if end is None or self.strange(work):
            return body
        match end:
            case Outcome.SUCCEED:
                count = int(work.input.get("num_images") or 1)
                outputs = self.links(work, origin, count)
                if work.input.get("enable_base64_output"):
                    outputs = [
                        base64.b64encode(self.picture(work, i)).decode() for i in range(count)
                    ]
                done = {"status": "completed", "outputs": outputs, "timings": {"inference": 1250}}
                return body | done | {"has_nsfw_contents": [False] * count, "executionTime": 1500}
            case Outcome.CANCELED:
                return body | {"status": "cancelled"}
            case Outcome.MODERATED_INPUT | Outcome.MODERATED_OUTPUT:
                reason = {"error": "content flagged as potentially sensitive", "code": 1200}
                return body | {"status": "failed"} | reason
        return body | {"status": "failed", "error": work.act.reason, "code": 1403}
