"""The native API described by itself: an OpenAPI document and a page that shows it offline."""

import html
import json

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from fluxserve import __version__
from fluxserve.core.request import JSON
from fluxserve.core.schema import Field
from fluxserve.dialects.base import Services
from fluxserve.dialects.native.admin import KEY_FIELDS
from fluxserve.dialects.native.words import FIELDS
from fluxserve.dialects.wire import Answer

# method, path, what it does, request schema, success status
OPERATIONS: tuple[tuple[str, str, str, str | None, int], ...] = (
    ("post", "/predictions", "Create a prediction", "Create", 201),
    ("get", "/predictions", "List predictions, newest first", None, 200),
    ("get", "/predictions/{id}", "One prediction; ?wait=SECONDS holds the answer", None, 200),
    ("delete", "/predictions/{id}", "Forget a prediction and its files", None, 204),
    ("post", "/predictions/{id}/cancel", "Cancel a prediction", None, 200),
    ("get", "/predictions/{id}/events", "Server-sent events of a prediction", None, 200),
    ("post", "/files", "Upload a picture (multipart `file`, or the bare bytes)", None, 201),
    ("get", "/files/{id}", "An uploaded picture", None, 200),
    ("get", "/models", "Every model card", None, 200),
    ("get", "/models/{name}", "One model card, by any of its names", None, 200),
    ("get", "/keys", "API keys (admin)", None, 200),
    ("post", "/keys", "Make an API key (admin)", "CreateKey", 201),
    ("delete", "/keys/{id}", "Revoke an API key (admin)", None, 200),
    ("get", "/deliveries", "Webhook messages (admin)", None, 200),
    ("post", "/deliveries/{id}/redeliver", "Send a webhook message again (admin)", None, 202),
    ("get", "/devices", "Engines and what they are doing", None, 200),
    ("get", "/channels", "Upstream channels and how they are doing (admin)", None, 200),
    ("get", "/attempts", "Submissions at providers (admin)", None, 200),
    ("post", "/attempts/{id}/resolve", "Tell of an unknown submission (admin)", None, 200),
    ("get", "/usage", "Spending by key, model, channel and day; format=csv", None, 200),
    ("get", "/prices", "Prices, every version (admin)", None, 200),
    ("post", "/prices", "Set a price (admin)", None, 201),
)


def document(mount: str, server: str) -> dict[str, JSON]:
    """The OpenAPI 3.0 document."""
    paths: dict[str, dict[str, JSON]] = {}
    for method, path, summary, schema, status in OPERATIONS:
        operation: dict[str, JSON] = {
            "summary": summary,
            "responses": {
                str(status): {"description": "done"},
                "default": {"description": "an error", "content": _json("Error")},
            },
        }
        if "{" in path:
            name = path.split("{")[1].split("}")[0]
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        if schema:
            operation["requestBody"] = {"required": True, "content": _json(schema)}
        paths.setdefault(mount + path, {})[method] = operation
    return {
        "openapi": "3.0.3",
        "info": {"title": "fluxserve native API", "version": __version__},
        "servers": [{"url": server}],
        "security": [{"key": []}],
        "paths": dict(paths),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Create": _object(FIELDS),
                "CreateKey": _object(KEY_FIELDS),
                "Error": {
                    "type": "object",
                    "properties": {
                        "error": {
                            "type": "object",
                            "properties": {
                                "code": {"type": "string"},
                                "message": {"type": "string"},
                                "field": {"type": "string", "nullable": True},
                            },
                        }
                    },
                },
            },
        },
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
    """A page of every operation and field; needs nothing from anywhere else."""
    rows = "".join(
        f"<tr><td><b>{method.upper()}</b></td><td><code>{html.escape(mount + path)}</code></td>"
        f"<td>{html.escape(summary)}</td></tr>"
        for method, path, summary, _, _ in OPERATIONS
    )
    fields = "".join(
        f"<tr><td><code>{field.name}</code></td><td>{field.kind.value}"
        f"{' (required)' if field.required else ''}</td>"
        f"<td>{html.escape(field.description or ', '.join(field.choices))}</td></tr>"
        for field in FIELDS
    )
    example = json.dumps({"model": "flux-kontext-dev", "prompt": "a red apple"})
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>fluxserve native API</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;width:100%}}td{{border-top:1px solid #8884;padding:.3rem .6rem}}
pre{{background:#8882;padding:1rem;overflow:auto}}</style>
<h1>fluxserve native API</h1>
<p>The machine-readable form is <a href="{mount}/openapi.json">openapi.json</a>.</p>
<pre>curl -X POST $HOST{mount}/predictions -d '{html.escape(example)}'</pre>
<h2>Operations</h2><table>{rows}</table><h2>Fields of a prediction</h2><table>{fields}</table>
</html>"""


def _object(fields: tuple[Field, ...]) -> dict[str, JSON]:
    properties: dict[str, JSON] = {field.name: field.json_schema() for field in fields}
    required: list[JSON] = [field.name for field in fields if field.required]
    schema: dict[str, JSON] = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    return schema


def _json(schema: str) -> dict[str, JSON]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
