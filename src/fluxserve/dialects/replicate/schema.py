"""The OpenAPI schema of a model's version, as clients read it to learn inputs and output."""

from fluxserve.core.request import JSON
from fluxserve.core.schema import Field
from fluxserve.dialects.replicate.shelf import Model

COG_VERSION = "0.16.0"  # below 0.3.9 the Python clients take lists for iterators


def openapi(model: Model) -> dict[str, JSON]:
    """`components.schemas` has Input, Output and one schema per enum, one level deep."""
    schemas: dict[str, JSON] = {"Input": _input(model), "Output": _output(model)}
    for field in model.inputs.fields:
        if field.choices:
            schemas[field.name] = {
                "type": "string",
                "title": field.name,
                "description": "An enumeration.",
                "enum": list(field.choices),
            }
    return {
        "openapi": "3.0.2",
        "info": {"title": model.card.title, "version": "0.1.0"},
        "paths": {"/predictions": {"post": _operation()}},
        "components": {"schemas": schemas},
    }


def version(model: Model) -> dict[str, JSON]:
    return {
        "id": model.version,
        "created_at": model.inputs.published,
        "cog_version": COG_VERSION,
        "openapi_schema": openapi(model),
    }


def _input(model: Model) -> JSON:
    fields = model.inputs.fields
    return {
        "type": "object",
        "title": "Input",
        "required": [field.name for field in fields if field.required],
        "properties": {
            field.name: _property(field, position) for position, field in enumerate(fields)
        },
    }


def _property(field: Field, position: int) -> JSON:
    apart = ("type", "enum") if field.choices else ()
    shown = {key: value for key, value in field.json_schema().items() if key not in apart}
    if field.choices:
        shown["allOf"] = [{"$ref": f"#/components/schemas/{field.name}"}]
    else:
        shown["title"] = field.name.replace("_", " ").title()
    shown["x-order"] = position
    return shown


def _output(model: Model) -> JSON:
    link: dict[str, JSON] = {"type": "string", "format": "uri"}
    if model.inputs.has_list_output:
        return {"type": "array", "title": "Output", "items": link}
    return {**link, "title": "Output"}


def _operation() -> JSON:
    body: JSON = {"application/json": {"schema": {"$ref": "#/components/schemas/Input"}}}
    done: JSON = {"application/json": {"schema": {"$ref": "#/components/schemas/Output"}}}
    return {
        "summary": "Predict",
        "operationId": "predict_predictions_post",
        "requestBody": {"content": body},
        "responses": {"200": {"description": "Successful Response", "content": done}},
    }
