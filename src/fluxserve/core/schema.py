"""Input fields as data: one table validates a body, gives defaults and prints as JSON Schema.

A dialect writes the fields of a model in its own words; what is wrong with a body comes back as
`Problem`s, which the dialect words as its service does.
"""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fluxserve.core.errors import Problem, Rule
from fluxserve.core.request import JSON

FLOAT_MAX = int(sys.float_info.max)


class Kind(StrEnum):
    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    URI = "uri"  # a string: http(s) URL, data URI, or what the dialect's image reader takes
    OBJECT = "object"
    ARRAY = "array"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One input field. Bounds are inclusive; `items` is the kind of an array's members, which
    `choices` are for."""

    name: str
    kind: Kind
    description: str = ""
    required: bool = False
    default: JSON = None
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    items: Kind | None = None
    max_items: int | None = None
    max_length: int | None = None  # characters
    pattern: str | None = None  # a regular expression the whole string matches
    nullable: bool = True  # null is the same as absent

    def json_schema(self) -> dict[str, JSON]:
        """This field as a JSON Schema (OpenAPI 3.0 flavour)."""
        kind = "string" if self.kind is Kind.URI else self.kind.value
        schema: dict[str, JSON] = {"type": kind}
        if self.kind is Kind.URI:
            schema["format"] = "uri"
        if self.description:
            schema["description"] = self.description
        if self.default is not None:
            schema["default"] = self.default
        if self.min is not None:
            schema["minimum"] = self.min
        if self.max is not None:
            schema["maximum"] = self.max
        if self.choices and self.items is None:
            schema["enum"] = list(self.choices)
        if self.items is not None:
            uri = self.items is Kind.URI
            items: dict[str, JSON] = {"type": "string" if uri else self.items.value}
            if uri:
                items["format"] = "uri"
            if self.choices:
                items["enum"] = list(self.choices)
            schema["items"] = items
        if self.max_items is not None:
            schema["maxItems"] = self.max_items
        if self.max_length is not None:
            schema["maxLength"] = self.max_length
        if self.pattern is not None:
            schema["pattern"] = self.pattern
        if self.nullable and not self.required:
            schema["nullable"] = True
        return schema


@dataclass(frozen=True, slots=True)
class Checked:
    """A body after the check: known fields with defaults filled in, and what was wrong."""

    values: Mapping[str, JSON]
    problems: tuple[Problem, ...]


def check(
    fields: Sequence[Field],
    body: Mapping[str, JSON],
    *,
    parent: str = "",
    lenient: bool = False,
    unknown: bool = True,
) -> Checked:
    """Check `body` against `fields`.

    `parent` prefixes field names ("input"). `lenient` reads numeric strings and "true"/"false".
    `unknown` False reports fields that the table does not have.
    """
    values = _table(fields).read(body, lenient=lenient, unknown=unknown)
    if values is not None:
        return Checked(values, ())
    return _check_each(fields, body, parent, lenient, unknown)


class _Table:
    """The fields of one table, made ready for bodies that have nothing wrong or odd in them."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = fields
        self._defaults = {field.name: field.default for field in fields}
        self._required = tuple(field.name for field in fields if field.required)
        self._never_null = frozenset(field.name for field in fields if not field.nullable)
        self._kinds = {field.name: field.kind for field in fields}
        self._takers = {field.name: _taker(field) for field in fields}

    def read(
        self, body: Mapping[str, JSON], *, lenient: bool, unknown: bool
    ) -> dict[str, JSON] | None:
        """The values, defaults filled in; None where every field has to be looked at."""
        for name in self._required:
            if body.get(name) is None:
                return None
        values, takers = self._defaults.copy(), self._takers
        for name, value in body.items():
            take = takers.get(name)
            if take is None:
                if not unknown:
                    return None
            elif value is None:
                if name in self._never_null:
                    return None
            else:
                if lenient:
                    value = _read_leniently(self._kinds[name], value)
                taken = take(value)
                if taken is None:
                    return None
                values[name] = taken
        return values


_tables: dict[int, _Table] = {}
TABLES_MAX = 1000  # more than there are; tables made for one body would fill it


def _table(fields: Sequence[Field]) -> _Table:
    table = _tables.get(id(fields))
    if table is None or table.fields is not fields:
        if len(_tables) >= TABLES_MAX:
            _tables.clear()
        table = _tables[id(fields)] = _Table(fields)
    return table


def _taker(field: Field) -> Callable[[JSON], JSON]:
    """Gives a plain good value as it should be; None for what has to be looked at."""
    low = -math.inf if field.min is None else field.min
    high = math.inf if field.max is None else field.max
    match field.kind:
        case Kind.STRING if field.pattern is None:
            choices, longest = frozenset(field.choices), field.max_length
            if choices:
                return lambda value: value if type(value) is str and value in choices else None
            if longest is not None:
                return lambda value: value if type(value) is str and len(value) <= longest else None
            return lambda value: value if type(value) is str else None
        case Kind.INTEGER:
            return lambda value: value if type(value) is int and low <= value <= high else None
        case Kind.NUMBER:
            # The narrow bounds leave what is infinite, and what no float holds, to the other way.
            low, high = max(low, -(2.0**53)), min(high, 2.0**53)
            return lambda value: (
                float(value)
                if (type(value) is float or type(value) is int) and low <= value <= high
                else None
            )
        case Kind.BOOLEAN:
            return lambda value: value if type(value) is bool else None
        case Kind.OBJECT:
            return lambda value: value if type(value) is dict else None
        case _:
            return lambda value: None


def _check_each(
    fields: Sequence[Field],
    body: Mapping[str, JSON],
    parent: str,
    lenient: bool,
    unknown: bool,
) -> Checked:
    """Look at every field, and say all that is wrong."""
    problems: list[Problem] = []
    values: dict[str, JSON] = {}
    for field in fields:
        value = body.get(field.name)
        if value is None:
            if field.required and (field.name not in body or field.nullable):
                text = f"{field.name} is required"
                problems.append(_problem(parent, Rule.REQUIRED, text, expected=field.name))
            elif field.name in body and not field.nullable:
                problems.append(_wrong_type(field, "null", parent))
            values[field.name] = field.default
            continue
        if lenient:
            value = _read_leniently(field.kind, value)
        found = _judge(field, value, parent)
        problems += found
        if not found:
            values[field.name] = _normal(field, value)
    if not unknown:
        known = {field.name for field in fields}
        problems += [
            _problem(
                parent, Rule.UNKNOWN, f"Additional property {name} is not allowed", expected=name
            )
            for name in body
            if name not in known
        ]
    return Checked(values, tuple(problems))


def kind_of(value: JSON) -> str:
    """The JSON Schema type of a value: null, boolean, integer, number, string, array, object."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case Mapping():
            return "object"
        case _:
            return "array"


def _judge(field: Field, value: JSON, parent: str) -> list[Problem]:
    given = kind_of(value)
    wanted = "string" if field.kind is Kind.URI else field.kind.value
    if given != wanted and not (wanted == "number" and given == "integer"):
        return [_wrong_type(field, given, parent)]
    name = _join(parent, field.name)
    if isinstance(value, str):
        return _judge_text(field, value, name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _judge_number(field, value, name)
    if isinstance(value, Sequence):
        return _judge_array(field, value, name)
    return []


def _judge_text(field: Field, value: str, name: str) -> list[Problem]:
    if field.kind is Kind.URI and not value.strip():
        return [_format(name, "uri")]
    if field.choices and value not in field.choices:
        return [_choice(field, name)]
    if field.max_length is not None and len(value) > field.max_length:
        text = f"Must be at most {field.max_length} characters long"
        return [Problem(field=name, rule=Rule.OTHER, message=text, limit=field.max_length)]
    if field.pattern is not None and not re.fullmatch(field.pattern, value):
        return [_format(name, field.pattern)]
    return []


def _judge_number(field: Field, value: float, name: str) -> list[Problem]:
    is_beyond = isinstance(value, int) and field.kind is Kind.NUMBER and abs(value) > FLOAT_MAX
    if is_beyond or (isinstance(value, float) and not math.isfinite(value)):
        text = "Must be a finite number"
        return [Problem(field=name, rule=Rule.OTHER, message=text)]
    if field.min is not None and value < field.min:
        text = f"Must be greater than or equal to {field.min:g}"
        return [Problem(field=name, rule=Rule.MIN, message=text, limit=field.min)]
    if field.max is not None and value > field.max:
        text = f"Must be less than or equal to {field.max:g}"
        return [Problem(field=name, rule=Rule.MAX, message=text, limit=field.max)]
    return []


def _judge_array(field: Field, value: Sequence[JSON], name: str) -> list[Problem]:
    if field.max_items is not None and len(value) > field.max_items:
        text = f"Array must have at most {field.max_items} items"
        return [Problem(field=name, rule=Rule.MAX_ITEMS, message=text, limit=field.max_items)]
    if field.items is None:
        return []
    wanted = "string" if field.items is Kind.URI else field.items.value
    for position, item in enumerate(value):
        given = kind_of(item)
        if given != wanted and not (wanted == "number" and given == "integer"):
            return [_type_problem(f"{name}.{position}", wanted, given)]
        if field.choices and item not in field.choices:
            return [_choice(field, f"{name}.{position}")]
    return []


def _normal(field: Field, value: JSON) -> JSON:
    """Integers that came as 2.0 become 2; numbers become floats."""
    if field.kind is Kind.INTEGER and isinstance(value, float):
        return int(value)
    if field.kind is Kind.NUMBER and isinstance(value, int):
        return float(value)
    return value


def _read_leniently(kind: Kind, value: JSON) -> JSON:
    if not isinstance(value, str):
        return value
    text = value.strip()
    if kind is Kind.BOOLEAN and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is Kind.INTEGER and re.fullmatch(r"[+-]?\d{1,20}", text):
        return int(text)
    if kind in (Kind.NUMBER, Kind.INTEGER) and re.fullmatch(
        r"[+-]?(\d{1,20}(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", text, re.IGNORECASE
    ):
        return float(text)
    return value


def _choice(field: Field, name: str) -> Problem:
    listed = ", ".join(f'"{choice}"' for choice in field.choices)
    text = f"{field.name} must be one of the following: {listed}"
    return Problem(field=name, rule=Rule.CHOICE, message=text, choices=field.choices)


def _problem(parent: str, rule: Rule, message: str, expected: str = "") -> Problem:
    return Problem(field=parent, rule=rule, message=message, expected=expected)


def _wrong_type(field: Field, given: str, parent: str) -> Problem:
    wanted = "string" if field.kind is Kind.URI else field.kind.value
    return _type_problem(_join(parent, field.name), wanted, given)


def _type_problem(name: str, wanted: str, given: str) -> Problem:
    text = f"Invalid type. Expected: {wanted}, given: {given}"
    return Problem(field=name, rule=Rule.TYPE, message=text, expected=wanted, given=given)


def _format(name: str, wanted: str) -> Problem:
    text = f"Does not match format '{wanted}'"
    return Problem(field=name, rule=Rule.FORMAT, message=text, expected=wanted)


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name
