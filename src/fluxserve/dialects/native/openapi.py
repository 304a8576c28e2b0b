"""The native API described by itself: an OpenAPI document and a page that shows it offline."""

import html
import json

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from fluxserve import __version__
from fluxserve.core.request import JSON
from fluxserve.dialects.base import Services
from fluxserve.dialects.native.operations import JSON_MIME, OPERATIONS, Operation, described
from fluxserve.dialects.native.schemas import SCHEMAS, STREAMED, event_name
from fluxserve.dialects.native.shapes import Schema, ref
from fluxserve.dialects.wire import Answer

ABOUT = (
    "Make and edit pictures. A server without keys takes every call; once the first key exists, "
    "each call needs one."
)


def document(mount: str, server: str) -> dict[str, JSON]:
    """The OpenAPI 3.1 document of the API under `mount` at `server` (scheme://host[:port])."""
    paths: dict[str, dict[str, JSON]] = {}
    for one in OPERATIONS:
        paths.setdefault(mount + one.path, {})[one.method] = described(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fluxserve native API", "version": __version__, "description": ABOUT},
        "servers": [{"url": server}],
        "security": [{"bearer": []}, {"header": []}, {}],
        "paths": dict(paths),
        "webhooks": {"prediction": {"post": _webhook()}},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "responses": {
                "Error": {
                    "description": "an error",
                    "headers": {"Retry-After": {"schema": {"type": "integer"}}},
                    "content": {JSON_MIME: {"schema": ref("Error")}},
                }
            },
            "schemas": dict(SCHEMAS),
        },
    }


def _webhook() -> dict[str, JSON]:
    """What `webhook` of a prediction is sent."""
    about = "Signed by Standard Webhooks; any 2xx will do, everything else is tried again"
    headers = ("webhook-id", "webhook-timestamp", "webhook-signature")
    return {
        "operationId": "tellPrediction",
        "summary": about,
        "security": [],
        "parameters": [
            {"name": name, "in": "header", "schema": {"type": "string"}} for name in headers
        ],
        "requestBody": {"required": True, "content": {JSON_MIME: {"schema": ref("Prediction")}}},
        "responses": {"2XX": {"description": "taken"}},
    }


def routes(services: Services, mount: str) -> list[Route]:
    async def openapi(request: Request) -> Response:
        return Answer(document(mount, services.links(request, mount).base))

    async def docs(request: Request) -> Response:
        return HTMLResponse(page(mount))

    return [
        Route(f"{mount}/openapi.json", openapi, methods=["GET"]),
        Route(f"{mount}/docs", docs, methods=["GET"]),
    ]


def page(mount: str) -> str:
    """A page of every operation and shape; needs nothing from anywhere else."""
    operations = "".join(_operation(mount, one) for one in OPERATIONS)
    shapes = "".join(_shape(name, schema) for name, schema in SCHEMAS.items())
    example = json.dumps({"model": "flux-kontext-dev", "prompt": "a red apple"})
    events = ", ".join(f"{_linked(event_name(kind))}" for kind in STREAMED)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>fluxserve native API</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;width:100%}}td{{border-top:1px solid #8884;padding:.3rem .6rem;
vertical-align:top}}pre{{background:#8882;padding:1rem;overflow:auto}}small{{color:#888}}</style>
<h1>fluxserve native API</h1>
<p>The machine-readable form is <a href="{mount}/openapi.json">openapi.json</a>. {ABOUT} It goes
into <code>Authorization: Bearer KEY</code> or <code>X-API-Key: KEY</code>.</p>
<pre>curl -X POST $HOST{mount}/predictions -d '{html.escape(example)}'</pre>
<h2>Operations</h2><table>{operations}</table>
<p>Whatever goes wrong is answered with {_linked("Error")}. The stream of a prediction has the
events {events}.</p>
<h2>Shapes</h2>{shapes}
</html>"""


def _operation(mount: str, one: Operation) -> str:
    takes = [f"<code>?{name}</code>" for name, _ in one.query]
    takes += [f"<code>{name}:</code>" for name, _ in one.headers]
    takes += [_linked(one.body)] if one.body else []
    takes += list(one.content or {})
    gives = [_linked(one.answer)] if one.answer else []
    gives += [mime for mime, _ in one.more]
    said = html.escape(one.about)
    said += f"<br><small>takes {', '.join(takes)}</small>" if takes else ""
    return (
        f"<tr><td><b>{one.method.upper()}</b></td><td><code>{html.escape(mount + one.path)}</code>"
        f"</td><td>{said}</td><td>{one.status} {', '.join(gives)}</td></tr>"
    )


def _shape(name: str, schema: Schema) -> str:
    properties, required = schema["properties"], schema.get("required") or ()
    assert isinstance(properties, dict), "every shape is an object"
    assert isinstance(required, list | tuple), "a list of names"
    rows = "".join(
        f"<tr><td><code>{html.escape(field)}</code></td>"
        f"<td>{_kind(inner)}{'' if field in required else ' (optional)'}</td>"
        f"<td>{html.escape(_note(inner))}</td></tr>"
        for field, inner in properties.items()
    )
    about = html.escape(str(schema.get("description", "")))
    return f'<h3 id="{name}">{name}</h3><p>{about}</p><table>{rows}</table>'


def _kind(schema: Schema) -> str:
    """A type in words, with links to shapes."""
    if isinstance(found := schema.get("$ref"), str):
        return _linked(found.rpartition("/")[2])
    if isinstance(several := schema.get("oneOf"), list):
        return " or ".join(_kind(one) for one in several)
    kinds = schema.get("type")
    told = " or ".join(str(kind) for kind in kinds) if isinstance(kinds, list) else str(kinds)
    if isinstance(items := schema.get("items"), dict):
        return f"{told} of {_kind(items)}"
    return told


def _note(schema: Schema) -> str:
    """Its description, and the words that it may be."""
    items = schema.get("items")
    words = schema.get("enum") or (items.get("enum") if isinstance(items, dict) else None)
    notes = [str(schema.get("description", ""))]
    if isinstance(words, list):
        notes.append(", ".join(str(word) for word in words if word is not None))
    return ": ".join(note for note in notes if note)


def _linked(name: str) -> str:
    return f'<a href="#{name}">{name}</a>'
