"""What fake providers share: they count submissions, play their script, hand out pictures."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from .pictures import picture
from .script import Act, Outcome, Output, Poll, Script, Submit, act_of

PRIVATE_URL = "http://10.255.255.1:9/secret.png"


@dataclass(slots=True)
class Work:
    """A job that the fake has accepted: this is what a real provider would charge for."""

    id: str
    model: str
    input: Mapping[str, Any]
    headers: Mapping[str, str]
    act: Act
    webhook: str | None
    created_at: float  # Unix time, s
    seed: int
    polls: int = 0
    downloads: int = 0
    canceled: bool = False

    @property
    def outcome(self) -> Outcome | None:
        """The end, once it has come."""
        if self.canceled:
            return Outcome.CANCELED
        late = time.time() < self.created_at + self.act.work_s
        if late or self.polls <= self.act.pending_polls or self.act.outcome is Outcome.HANG:
            return None
        return self.act.outcome


@dataclass(slots=True)
class Heard:
    """One request of any kind, for tests that ask what was sent where."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class FakeProvider:
    """A provider of one kind; subclasses speak its words. Thread-safe enough for one server."""

    key: str = "fake-key"
    prefix: str = ""  # what a reseller mounts the API under
    picture_size: tuple[int, int] = (64, 64)
    can_list: bool = True
    honours_idempotency: bool = False
    script: Script = field(default_factory=Script)
    works: dict[str, Work] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    refused: int = 0
    webhook_answers: list[int] = field(default_factory=list)
    by_idempotency_key: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    # ---- what a kind says in its own words

    def routes(self) -> Sequence[BaseRoute]:
        raise TypeError("a kind of provider lists its routes")

    def has_key(self, request: Request) -> bool:
        raise TypeError("a kind of provider knows where its key is")

    def refusal(self, fault: Submit, act: Act) -> Response:
        raise TypeError("a kind of provider has its own errors")

    def accepted(self, work: Work, request: Request) -> Response:
        raise TypeError("a kind of provider answers a submission")

    def render(self, work: Work, origin: str) -> dict[str, Any]:
        raise TypeError("a kind of provider shows a job")

    # ---- the parts they share

    def app(self) -> Starlette:
        """The application to serve."""
        shared = [
            Route("/out/{name}", self.output, methods=["GET", "HEAD"]),
            Route("/_fake/works", self.count),
            Route("/_fake/acts", self.play, methods=["POST"]),
        ]
        return Starlette(routes=[*shared, *self.routes()])

    @property
    def submissions(self) -> int:
        """Jobs accepted: what the provider charges for."""
        return len(self.works)

    async def count(self, request: Request) -> Response:
        """For scripts that run the fake in another process."""
        shown = [
            {"id": w.id, "model": w.model, "input": dict(w.input), "canceled": w.canceled}
            for w in self.works.values()
        ]
        return JSONResponse(shown)

    async def play(self, request: Request) -> Response:
        """For scripts that run the fake in another process: what becomes of the next ones."""
        self.script.then(*map(act_of, await request.json()))
        return Response(status_code=204)

    def note(self, request: Request) -> None:
        self.heard.append(Heard(request.method, request.url.path, dict(request.headers)))

    def new_id(self) -> str:
        return f"job{len(self.works):06d}"

    async def submit(
        self, request: Request, *, model: str, values: Mapping[str, Any], webhook: str | None
    ) -> Response:
        """Play the next act of the script with this submission."""
        self.note(request)
        if not self.has_key(request):
            self.refused += 1
            return self.refusal(Submit.WRONG_KEY, Act())
        idempotency_key = request.headers.get("idempotency-key")
        with self.lock:
            known = self.by_idempotency_key.get(idempotency_key or "")
            act = Act() if known else self.script.next()
            work = self.works[known] if known else None
            if work is None and act.submit.accepts:
                work = self.accept(request, act, model, values, webhook)
                if idempotency_key and self.honours_idempotency:
                    self.by_idempotency_key[idempotency_key] = work.id
        if act.accept_s:
            await asyncio.sleep(act.accept_s)
        return await self.answer(request, act, work)

    def accept(
        self,
        request: Request,
        act: Act,
        model: str,
        values: Mapping[str, Any],
        webhook: str | None,
    ) -> Work:
        seed = values.get("seed")
        work = Work(
            id=self.new_id(),
            model=model,
            input=values,
            headers=dict(request.headers),
            act=act,
            webhook=webhook,
            created_at=time.time(),
            seed=seed if isinstance(seed, int) else len(self.works),
        )
        self.works[work.id] = work
        return work

    async def answer(self, request: Request, act: Act, work: Work | None) -> Response:
        match act.submit:
            case Submit.DROP_BEFORE | Submit.DROP_AFTER:
                return cut(request)
            case Submit.ERROR_BEFORE | Submit.ERROR_AFTER:
                return JSONResponse({"detail": "try again later"}, 503)
            case Submit.HTML_BEFORE | Submit.HTML_AFTER:
                return html()
            case Submit.WRONG_TYPE:
                return JSONResponse(["what", "is", "this"])
            case Submit.NO_ID:
                return JSONResponse({"hello": "there"})
            case Submit.ENDLESS:
                return endless("application/json")
            case Submit.REDIRECT:
                return Response(status_code=307, headers={"location": PRIVATE_URL})
            case Submit.OK:
                assert work is not None
                response = self.accepted(work, request)
                if work.webhook:
                    origin = origin_of(request)
                    response.background = BackgroundTask(self.send_webhooks, work, origin)
                return response
        self.refused += 1
        return self.refusal(act.submit, act)

    async def poll(self, request: Request, work: Work | None) -> Response:
        """Show a job, or misbehave as its act says."""
        if work is None:
            return self.refusal(Submit.UNKNOWN_MODEL, Act())
        work.polls += 1
        if work.act.poll is not Poll.OK and work.polls <= work.act.poll_faults:
            match work.act.poll:
                case Poll.HTML:
                    return html()
                case Poll.WRONG_TYPE:
                    return JSONResponse(["what"])
                case Poll.ERROR:
                    return JSONResponse({"detail": "try again later"}, 502)
                case Poll.DROP:
                    return cut(request)
                case Poll.NOT_FOUND:
                    return self.refusal(Submit.UNKNOWN_MODEL, work.act)
                case Poll.RATE_LIMITED:
                    return self.refusal(Submit.RATE_LIMITED, work.act)
                case Poll.ENDLESS:
                    return endless("application/json")
        return JSONResponse(self.render(work, origin_of(request)))

    def shown_id(self, work: Work) -> str:
        """The id to print: another one where the act says so."""
        lying = work.act.poll is Poll.WRONG_ID and 0 < work.polls <= work.act.poll_faults
        return "somebody-elses-job" if lying else work.id

    def strange(self, work: Work) -> bool:
        """Whether the status shown is one that nobody knows."""
        return work.act.poll is Poll.STRANGE and 0 < work.polls <= work.act.poll_faults

    def form(self, work: Work) -> str:
        """png, jpeg or webp, as asked."""
        asked = str(work.input.get("output_format") or "png")
        return {"jpg": "jpeg"}.get(asked, asked)

    def picture(self, work: Work, index: int) -> bytes:
        width, height = self.picture_size
        return picture((work.seed + index) % 997, width, height, self.form(work))

    def links(self, work: Work, origin: str, count: int = 1) -> list[str]:
        """Links to the pictures of a finished job, or what the act wants there instead."""
        match work.act.output:
            case Output.FOREIGN:
                return [PRIVATE_URL]
            case Output.FILE_URL:
                return ["file:///etc/hostname"]
            case Output.NOTHING:
                return []
            case Output.DATA_URI:
                data = base64.b64encode(self.picture(work, 0)).decode()
                return [f"data:image/{self.form(work)};base64,{data}"]
        names = [f"{work.id}-{index}.{self.form(work)}" for index in range(count)]
        return [f"{origin}/out/{name}" for name in names]

    async def output(self, request: Request) -> Response:
        """The picture itself."""
        self.note(request)
        job_id, _, rest = request.path_params["name"].rpartition("-")
        work = self.works.get(job_id)
        if work is None or work.act.output is Output.NOT_FOUND:
            return Response("gone", 404)
        work.downloads += 1
        body = self.picture(work, int(rest.partition(".")[0]))
        mime = f"image/{self.form(work)}"
        match work.act.output:
            case Output.TEXT:
                return Response("this is not a picture", media_type=mime)
            case Output.ENDLESS:
                return endless(mime)
            case Output.REDIRECT:
                return Response(status_code=302, headers={"location": PRIVATE_URL})
            case Output.DROP:
                return half(request, body, mime)
            case Output.ONCE_DROP if work.downloads == 1:
                return half(request, body, mime)
        return Response(body, media_type=mime)

    def webhook_body(self, work: Work, origin: str) -> dict[str, Any]:
        return self.render(work, origin)

    async def send_webhooks(self, work: Work, origin: str) -> None:
        """Tell the caller's webhook about the end, as often as the act says."""
        await asyncio.sleep(work.act.work_s)
        if work.webhook is None or work.act.outcome is Outcome.HANG:
            return
        work.polls += work.act.pending_polls + 1
        body = json.dumps(self.webhook_body(work, origin))
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            for _ in range(work.act.webhooks):
                headers = {"content-type": "application/json"}
                try:
                    answer = await client.post(work.webhook, content=body, headers=headers)
                except httpx.HTTPError:
                    self.webhook_answers.append(0)
                else:
                    self.webhook_answers.append(answer.status_code)


def origin_of(request: Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc}"


def cut(request: Request) -> Response:
    """Close the connection without an answer; the response returned is never sent."""
    request.scope["drop"]()
    return Response()


def half(request: Request, body: bytes, mime: str) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        await asyncio.sleep(0.05)  # lets the first half leave before the cut
        request.scope["drop"]()

    headers = {"content-length": str(len(body))}
    return StreamingResponse(parts(), media_type=mime, headers=headers)


def html() -> Response:
    return Response("<html><body>Welcome to nginx!</body></html>", media_type="text/html")


def endless(mime: str) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536
            await asyncio.sleep(0)

    return StreamingResponse(parts(), media_type=mime)
