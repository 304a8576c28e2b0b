"""The page behind `urls.web`: one prediction for human eyes, for whoever has its id."""

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fluxserve.core.errors import NotFound
from fluxserve.core.ids import parse_id
from fluxserve.dialects.base import Services
from fluxserve.dialects.replicate.render import failure_of, links_of, model_name, status_of
from fluxserve.dialects.replicate.words import failure_text

POLICY = (
    "default-src 'none'; img-src 'self' http: https:; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'"
)
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "img{max-width:100%;height:auto;margin:.5rem 0}pre{overflow:auto;background:#8882;padding:1rem}"
    ":root{color-scheme:light dark}"
)


async def page_of(services: Services, request: Request) -> Response:
    """NotFound when there is no such prediction."""
    id_ = parse_id(request.path_params["id"])
    if id_ is None:
        raise NotFound("there is no such prediction")
    prediction = await services.predictions.get(id_)
    links = services.links(request, "/v1")
    status = status_of(prediction)
    refresh = "" if prediction.is_terminal else '<meta http-equiv="refresh" content="2">'
    parts = [f"<h1>{escape(model_name(prediction))}</h1>", f"<p>{status}</p>"]
    if failure := failure_of(prediction):
        parts.append(f"<p>{escape(failure_text(failure))}</p>")
    if prediction.data_removed:
        parts.append("<p>Its data have been removed.</p>")
    else:
        parts.append(f"<p>{escape(prediction.request.prompt)}</p>")
        for position, link in enumerate(links_of(prediction, links)):
            parts.append(f'<p><img src="{escape(link)}" alt="output {position}"></p>')
        if prediction.logs:
            parts.append(f"<pre>{escape(prediction.logs)}</pre>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{refresh}'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(model_name(prediction))}: {status}</title><style>{STYLE}</style>"
        f"<main>{''.join(parts)}</main></html>"
    )
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse(page, headers=headers)
