"""`/healthz`: the process lives. `/readyz`: it can take work, or why not."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fluxserve import __version__

Check = Callable[[], Awaitable[str | None]]  # what is wrong, or None


def routes(checks: Sequence[Check]) -> list[Route]:
    """`checks` are asked at every `/readyz`; each answers with a reason not to be ready."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    async def readyz(request: Request) -> Response:
        reasons = [reason for check in checks if (reason := await check())]
        if reasons:
            return JSONResponse({"status": "not ready", "reasons": reasons}, 503)
        return JSONResponse({"status": "ready", "version": __version__})

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
