"""The fal dialect: a queue, a call that waits, and the one address of its JavaScript client.

POST /fal/queue/{app}                             submit; ?fal_webhook=
GET  /fal/queue/{app}/requests/{id}/status        also /status/stream; ?logs=1
GET  /fal/queue/{app}/requests/{id}               the output
PUT  /fal/queue/{app}/requests/{id}/cancel
POST /fal/run/{app}                               waits; with /stream: partial outputs
GET, POST, PUT /fal/proxy                         all of these by the header x-fal-target-url
PUT  /fal/storage/put/{token}                     the bytes of an upload
GET  /.well-known/jwks.json                       the key that webhooks are signed with
"""

from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.errors import NotFound
from fluxserve.dialects.base import Dialect, Handler, Services, answering
from fluxserve.dialects.fal.calls import Ask, Calls, query_of
from fluxserve.dialects.fal.errors import error, error_headers
from fluxserve.dialects.fal.uploads import Uploads
from fluxserve.dialects.fal.words import NAME, render
from fluxserve.dialects.wire import Answer

MOUNT = "/fal"
TARGET = "x-fal-target-url"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
JWKS = "/.well-known/jwks.json"
INITIATE = "/storage/upload/initiate"


def routes(services: Services, mount: str) -> Sequence[Route]:
    calls = Calls(services=services, mount=mount)
    uploads = Uploads(services=services, mount=mount)

    def ask(request: Request) -> Ask:
        path = request.path_params["path"]
        return Ask(request=request, path=path, query=query_of(request.url.query))

    async def queue(request: Request) -> Response:
        return await calls.queue(ask(request))

    async def run(request: Request) -> Response:
        return await calls.run(ask(request))

    async def proxy(request: Request) -> Response:
        """Nothing leaves this server: the host in the header only says which of its parts."""
        target = request.headers.get(TARGET, "").strip()
        try:
            parts = urlsplit(target)
            host = (parts.hostname or "").lower()
        except ValueError:
            host = ""
        if not host:
            text = f"the header {TARGET} must name an absolute URL"
            return Answer({"detail": text, "message": text}, 400)
        call = Ask(request=request, path=unquote(parts.path), query=query_of(parts.query))
        if host.startswith("queue."):
            return await calls.queue(call)
        if host.startswith("rest."):
            if call.path != INITIATE or request.method != "POST":
                raise NotFound(f"of the storage, POST {INITIATE} is served here")
            return await uploads.initiate(request)
        return await calls.run(call)

    async def jwks(request: Request) -> Response:
        return Answer(services.webhook_jwks, headers={"Cache-Control": "max-age=3600"})

    return [
        _route(f"{mount}/queue/{{path:path}}", queue),
        _route(f"{mount}/run/{{path:path}}", run),
        _route(f"{mount}/proxy", proxy),
        _route(f"{mount}{INITIATE}", uploads.initiate, "POST"),
        _route(f"{mount}/storage/put/{{token}}", uploads.put, "PUT"),
        _route(f"{mount}/storage/put/{{token}}", uploads.preflight, "OPTIONS"),
        _route(JWKS, jwks, "GET"),
    ]


def _route(path: str, handler: Handler, *methods: str) -> Route:
    return Route(path, answering(error, error_headers)(handler), methods=methods or METHODS)


def owns(path: str) -> bool:
    return path in (MOUNT, JWKS) or path.startswith(f"{MOUNT}/")


DIALECT = Dialect(
    name=NAME,
    mounts=(MOUNT,),
    routes=routes,
    render=render,
    error=error,
    owns=owns,
    signature="fal",
    error_headers=error_headers,
)
