"""Whether a value fits a JSON Schema, as far as our documents use the language."""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
# Words that say nothing here, or that `misfits` below knows.
KNOWN = {
    *("type", "enum", "properties", "required", "additionalProperties", "items", "oneOf", "$ref"),
    *("minimum", "maximum", "maxItems", "maxLength", "format", "contentMediaType"),
    *("description", "default", "x-events"),
}


def resolved(document: Schema, pointer: str) -> Any:
    """What a `$ref` within the document leads to; KeyError."""
    found: Any = document
    for part in pointer.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def schemas(node: Any) -> Iterator[Schema]:
    """A schema and all that it is made of."""
    yield node
    for inner in [*node.get("properties", {}).values(), *node.get("oneOf", [])]:
        yield from schemas(inner)
    for word in ("items", "additionalProperties"):
        if isinstance(node.get(word), dict):
            yield from schemas(node[word])


def misfits(document: Schema, schema: Schema, value: Any, where: str = "$") -> list[str]:
    """Everything in which a value differs from its schema; nothing when it fits."""
    if "$ref" in schema:
        return misfits(document, resolved(document, schema["$ref"]), value, where)
    if "oneOf" in schema:
        each = [misfits(document, one, value, where) for one in schema["oneOf"]]
        return [] if each.count([]) == 1 else [f"{where} fits not one of {each}"]
    if "type" in schema and not _is_of(schema["type"], value):
        return [f"{where} is {value!r} and no {schema['type']}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where} is {value!r}, none of {schema['enum']}")
    if isinstance(value, dict):
        found += _in_object(document, schema, value, where)
    if isinstance(value, list):
        for position, item in enumerate(value):
            found += misfits(document, schema.get("items", {}), item, f"{where}[{position}]")
    is_number = type(value) in (int, float)
    if is_number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{where} is {value}, out of its range")
    return found


def _is_of(kinds: str | list[str], value: Any) -> bool:
    names = [kinds] if isinstance(kinds, str) else kinds
    fitting = [name for name in names if isinstance(value, TYPES[name])]
    return "boolean" in fitting if isinstance(value, bool) else bool(fitting)


def _in_object(
    document: Schema, schema: Schema, value: Mapping[str, Any], where: str
) -> Iterator[str]:
    properties = schema.get("properties", {})
    more = schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where}.{name} is not there"
    for name, inner in value.items():
        if name in properties:
            yield from misfits(document, properties[name], inner, f"{where}.{name}")
        elif more is False:
            yield f"{where}.{name} is not described"
        elif isinstance(more, dict):
            yield from misfits(document, more, inner, f"{where}.{name}")
