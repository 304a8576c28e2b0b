"""The Replicate dialect: its routes under every mount, and the value that names its parts.

POST /predictions, /models/{o}/{n}/predictions, /deployments/{o}/{n}/predictions   create
GET  /predictions, /predictions/{id};  POST /predictions/{id}/cancel                read, cancel
GET, QUERY /models;  GET /models/{o}/{n}[/versions[/{id}], /readme, /examples], /search
POST, GET, DELETE /files...;  GET /v1/files/<stream token>                          files, streams
GET  /account, /hardware, /collections, /deployments, /trainings, /webhooks/default/secret
GET  /p/{id}                                                                        a page
"""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.dialects.base import Dialect, Services
from fluxserve.dialects.replicate.account import Account
from fluxserve.dialects.replicate.api import Called, Plain, called, plain, resource
from fluxserve.dialects.replicate.events import open_stream
from fluxserve.dialects.replicate.files import Files
from fluxserve.dialects.replicate.modelpages import Models
from fluxserve.dialects.replicate.predictions import Predictions
from fluxserve.dialects.replicate.render import NAME, render
from fluxserve.dialects.replicate.shelf import Shelf
from fluxserve.dialects.replicate.tokens import TOKEN
from fluxserve.dialects.replicate.webpage import page_of
from fluxserve.dialects.replicate.words import error, error_headers

MOUNTS = ("/v1", "/replicate/v1")
ROOMS = (
    "predictions",
    "models",
    "deployments",
    "files",
    "account",
    "hardware",
    "collections",
    "trainings",
    "search",
    "webhooks",
)
# Paths that clients ask for when their base is off by /v1.
UNVERSIONED = ("predictions", "models", "files", "account", "deployments")


def routes(services: Services, mount: str) -> Sequence[Route]:
    """Every route under `mount`, and under what clients make of it when their base is off."""
    shelf = Shelf(services.catalog)
    found = _routes(services, shelf, mount, mount)
    found += _routes(services, shelf, mount, mount + mount[mount.rfind("/") :])
    bare = mount.removesuffix("/v1")
    allowed = tuple(f"{bare}/{room}" for room in UNVERSIONED)
    found += [
        route for route in _routes(services, shelf, mount, bare) if route.path.startswith(allowed)
    ]
    if mount == MOUNTS[0]:

        async def show(request: Request) -> Response:
            return await page_of(services, request)

        found.append(resource("/p/{id}", {"GET": plain(show)}))
    return found


def _routes(services: Services, shelf: Shelf, mount: str, prefix: str) -> list[Route]:
    """The routes at `prefix`; the links in their answers are under `mount`."""
    models = Models(services, shelf, mount, shared=prefix == MOUNTS[0])
    account = Account(services, shelf, models, mount)
    files = Files(services, mount)

    def get(path: str, handler: Called) -> Route:
        return resource(prefix + path, {"GET": called(services, handler)})

    return [
        *Predictions(services, shelf, mount).routes(prefix),
        resource(
            prefix + "/models",
            {"GET": called(services, models.list), "QUERY": called(services, models.search)},
        ),
        get("/models/{owner}/{name}", models.get),
        get("/models/{owner}/{name}/versions", models.versions),
        get("/models/{owner}/{name}/versions/{version}", models.version),
        get("/models/{owner}/{name}/readme", models.readme),
        get("/models/{owner}/{name}/examples", models.examples),
        get("/search", models.search_all),
        resource(
            prefix + "/files",
            {"GET": called(services, files.list), "POST": called(services, files.upload)},
        ),
        resource(
            prefix + "/files/{id}",
            {"GET": _file_or_stream(services, files), "DELETE": called(services, files.delete)},
        ),
        resource(prefix + "/files/{id}/download", {"GET": plain(files.download)}),
        get("/account", account.account),
        get("/hardware", account.hardware),
        get("/webhooks/default/secret", account.secret),
        get("/trainings", account.trainings),
        get("/deployments", account.deployments),
        get("/deployments/{owner}/{name}", account.deployment),
        get("/collections", account.collections),
        get("/collections/{slug}", account.collection),
    ]


def _file_or_stream(services: Services, files: Files) -> Plain:
    """Files and streams share one path; a stream's token has a dash, a file's id never."""
    metadata = called(services, files.get)

    async def stream(request: Request) -> Response:
        return await open_stream(services, request, request.path_params["id"])

    watched = plain(stream)

    async def choose(request: Request) -> Response:
        is_stream = TOKEN.fullmatch(request.path_params["id"]) is not None
        return await (watched if is_stream else metadata)(request)

    return choose


def owns(path: str) -> bool:
    """Whether an unknown path is a Replicate client's mistake."""
    if path.startswith("/replicate/"):
        return True
    rooms = path.removeprefix("/v1").removeprefix("/v1").split("/")
    return len(rooms) > 1 and rooms[1] in ROOMS


DIALECT = Dialect(
    name=NAME,
    mounts=MOUNTS,
    routes=routes,
    render=render,
    error=error,
    owns=owns,
    error_headers=error_headers,
)
