"""How the shapes of the native API are written down: small words that give JSON Schema."""

from collections.abc import Mapping
from enum import StrEnum

from fluxserve.core.events import EventKind
from fluxserve.core.request import JSON
from fluxserve.core.schema import Field

Schema = Mapping[str, JSON]


def plain(kind: str, about: str = "", **more: JSON) -> dict[str, JSON]:
    return {"type": kind, **({"description": about} if about else {}), **more}


def text(about: str = "", **more: JSON) -> dict[str, JSON]:
    return plain("string", about, **more)


def whole(about: str = "") -> dict[str, JSON]:
    return plain("integer", about)


def number(about: str = "") -> dict[str, JSON]:
    return plain("number", about)


def flag(about: str = "") -> dict[str, JSON]:
    return plain("boolean", about)


def one_of(words: type[StrEnum], about: str = "") -> dict[str, JSON]:
    return text(about, enum=[str(word) for word in words])


def moment(about: str = "") -> dict[str, JSON]:
    return text(about, format="date-time")


def link(about: str = "") -> dict[str, JSON]:
    return text(about, format="uri")


def or_null(schema: Schema) -> dict[str, JSON]:
    """The same, or null."""
    if "$ref" in schema:
        return {"oneOf": [schema, {"type": "null"}]}
    found: dict[str, JSON] = {**schema, "type": [schema["type"], "null"]}
    if isinstance(words := schema.get("enum"), list):
        found["enum"] = [*words, None]
    return found


def listed(items: Schema, about: str = "") -> dict[str, JSON]:
    return plain("array", about, items=items)


def table_of(values: Schema, about: str = "") -> dict[str, JSON]:
    """An object whose names are not known beforehand."""
    return plain("object", about, additionalProperties=values)


def ref(name: str) -> dict[str, JSON]:
    return {"$ref": f"#/components/schemas/{name}"}


def answered(about: str, /, **properties: Schema) -> dict[str, JSON]:
    """An object that an answer holds: nothing more, and nothing left out."""
    return plain(
        "object",
        about,
        properties=properties,
        required=list(properties),
        additionalProperties=False,
    )


def results(name: str, about: str, **more: Schema) -> Schema:
    return answered(about, results=listed(ref(name)), **more)


def asked(fields: tuple[Field, ...], about: str, **better: Schema) -> Schema:
    """A body that is asked for; `better` says more of a field than its `Field` can."""
    properties: dict[str, JSON] = {}
    for field in fields:
        schema = field.json_schema()
        is_nullable = schema.pop("nullable", False)
        schema |= better.get(field.name, {})
        properties[field.name] = or_null(schema) if is_nullable else schema
    required: list[JSON] = [field.name for field in fields if field.required]
    more: dict[str, JSON] = {"required": required} if required else {}
    return plain("object", about, properties=properties, additionalProperties=False, **more)


def event(kind: EventKind, about: str, **data: Schema) -> Schema:
    return answered(f"Data of the event `{kind}`: {about}", at=moment(), **data)
