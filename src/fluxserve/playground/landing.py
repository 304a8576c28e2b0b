"""Serves the pages of this folder: `/` and its two files; the browser does the rest over HTTP."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGES = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/playground/app.js", "app.js", "text/javascript; charset=utf-8"),
    ("/playground/style.css", "style.css", "text/css; charset=utf-8"),
    ("/favicon.svg", "favicon.svg", "image/svg+xml"),
)
# Nothing but our own files runs on the page; pictures may also come inline (previews).
POLICY = "default-src 'self'; img-src 'self' data: blob: https: http:; frame-ancestors 'none'"


def routes() -> list[Route]:
    room = files("fluxserve.playground")

    def page(name: str, mime: str) -> Route:
        async def show(request: Request) -> Response:
            headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
            return Response((room / name).read_bytes(), media_type=mime, headers=headers)

        return Route(next(path for path, file, _ in PAGES if file == name), show)

    return [page(name, mime) for _, name, mime in PAGES]
