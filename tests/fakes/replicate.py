"""A fake Replicate, or a reseller of it with a path prefix.

POST {prefix}/v1/models/{owner}/{name}/predictions   submit
POST {prefix}/v1/predictions                         submit by version
GET  {prefix}/v1/predictions[/{id}]                  list, poll
POST {prefix}/v1/predictions/{id}/cancel             cancel
POST {prefix}/v1/files                               upload
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from .provider import FakeProvider, Work, origin_of
from .script import Act, Outcome, Submit

LISTS = ("flux-dev", "flux-schnell", "flux-fill-dev")  # models whose output is a list
PAGE = 100
ERRORS: dict[Submit, tuple[int, dict[str, Any]]] = {
    Submit.WRONG_KEY: (
        401,
        {"title": "Unauthenticated", "detail": "You did not pass a valid authentication token"},
    ),
    Submit.NO_CREDIT: (
        402,
        {"title": "Insufficient credit", "detail": "You have insufficient credit to run this."},
    ),
    Submit.UNKNOWN_MODEL: (404, {"detail": "The requested resource could not be found."}),
    Submit.INVALID: (
        422,
        {
            "title": "Input validation failed",
            "detail": "- input.num_inference_steps: Must be less than or equal to 4\n",
            "invalid_fields": [
                {
                    "type": "number_lte",
                    "field": "input.num_inference_steps",
                    "description": "Must be less than or equal to 4",
                }
            ],
        },
    ),
    Submit.MODERATED: (422, {"title": "Refused", "detail": "The prompt was flagged (E005)"}),
}


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


@dataclass(slots=True, kw_only=True)
class FakeReplicate(FakeProvider):
    """Speaks the Replicate HTTP API as its contract writes it down."""

    def routes(self) -> Sequence[BaseRoute]:
        inner = [
            Route("/models/{owner}/{name}/predictions", self.by_model, methods=["POST"]),
            Route("/predictions", self.by_version, methods=["POST"]),
            Route("/predictions", self.listing, methods=["GET"]),
            Route("/predictions/{id}", self.get),
            Route("/predictions/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/files", self.upload, methods=["POST"]),
        ]
        return [Mount(f"{self.prefix}/v1", routes=inner)]

    def has_key(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() in {"bearer", "token"} and key == self.key

    def refusal(self, fault: Submit, act: Act) -> Response:
        if fault is Submit.RATE_LIMITED:
            words = f"Your rate limit resets in ~{act.retry_after_s}s."
            body: dict[str, Any] = {
                "detail": f"Request was throttled. {words}",
                "status": 429,
                "retry_after": act.retry_after_s,
            }
            return JSONResponse(body, 429, headers={"retry-after": str(act.retry_after_s)})
        if fault is Submit.ERROR_INSIDE:
            return JSONResponse({"error": {"message": "upstream exploded", "type": "500"}})
        status, body = ERRORS[fault]
        return JSONResponse(
            body | {"status": status}, status, media_type="application/problem+json"
        )

    def accepted(self, work: Work, request: Request) -> Response:
        body = self.render(work, origin_of(request)) | {"status": "starting", "output": None}
        return JSONResponse(body, 201)

    async def by_model(self, request: Request) -> Response:
        model = f"{request.path_params['owner']}/{request.path_params['name']}"
        body = await request.json()
        return await self.submit(
            request, model=model, values=body["input"], webhook=body.get("webhook")
        )

    async def by_version(self, request: Request) -> Response:
        body = await request.json()
        return await self.submit(
            request, model=body["version"], values=body["input"], webhook=body.get("webhook")
        )

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
        newest_first = list(reversed(self.works.values()))
        start = int(request.query_params.get("cursor", "0"))
        page = newest_first[start : start + PAGE]
        origin = origin_of(request)
        url = f"{origin}{request.url.path}?cursor={start + PAGE}"
        return JSONResponse(
            {
                "previous": None,
                "next": url if start + PAGE < len(newest_first) else None,
                "results": [self.render(work, origin) for work in page],
            }
        )

    async def cancel(self, request: Request) -> Response:
        self.note(request)
        work = self.works.get(request.path_params["id"])
        if work is None:
            return self.refusal(Submit.UNKNOWN_MODEL, Act())
        if work.outcome is None:
            work.canceled = True
        return JSONResponse(self.render(work, origin_of(request)))

    async def upload(self, request: Request) -> Response:
        self.note(request)
        async with request.form() as form:
            content = form["content"]
            assert not isinstance(content, str)
            data = await content.read()
        file_id = f"file{len(self.uploads)}"
        self.uploads[file_id] = data
        url = f"{origin_of(request)}{self.prefix}/v1/files/{file_id}"
        return JSONResponse({"id": file_id, "size": len(data), "urls": {"get": url}}, 201)

    def render(self, work: Work, origin: str) -> dict[str, Any]:
        end = work.outcome
        url = f"{origin}{self.prefix}/v1/predictions/{work.id}"
        logs = f"Using seed: {work.seed}\n  0%|          | 0/4 [00:00<?, ?it/s]\n"
        body: dict[str, Any] = {
            "id": self.shown_id(work),
            "model": work.model,
            "version": "hidden",
            "input": dict(work.input),
            "logs": logs,
            "output": None,
            "data_removed": False,
            "error": None,
            "status": "pondering" if self.strange(work) else "processing",
            "source": "api",
            "created_at": iso(work.created_at),
            "urls": {"get": url, "cancel": f"{url}/cancel"},
        }
        if work.webhook:
            body |= {"webhook": work.webhook}
        if end is None or self.strange(work):
            return body
        body |= {
            "started_at": iso(work.created_at),
            "completed_at": iso(work.created_at + work.act.work_s),
            "metrics": {"predict_time": 1.25, "total_time": 1.5, "image_count": 1},
            "logs": logs + "100%|██████████| 4/4 [00:01<00:00,  4.0it/s]\n",
        }
        match end:
            case Outcome.SUCCEED:
                links = self.links(work, origin, int(work.input.get("num_outputs") or 1))
                many = work.model.rpartition("/")[2] in LISTS
                body |= {
                    "status": "succeeded",
                    "output": links if many else next(iter(links), None),
                }
            case Outcome.CANCELED:
                body |= {"status": "canceled"}
            case Outcome.MODERATED_INPUT | Outcome.MODERATED_OUTPUT:
                reason = "The input or output was flagged as sensitive. (E005)"
                body |= {"status": "failed", "error": reason}
            case _:
                body |= {"status": "failed", "error": work.act.reason}
        return body
