"""Field tables: what they accept, what they say is wrong, how they print."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.core.errors import Rule
from fluxserve.core.request import JSON
from fluxserve.core.schema import Checked, Field, Kind, _check_each, check, kind_of

FIELDS = (
    Field(name="prompt", kind=Kind.STRING, required=True, max_length=10),
    Field(name="steps", kind=Kind.INTEGER, default=4, min=1, max=50),
    Field(name="guidance", kind=Kind.NUMBER, min=0, max=10),
    Field(name="format", kind=Kind.STRING, choices=("png", "jpg"), default="png"),
    Field(name="image", kind=Kind.URI),
    Field(name="fast", kind=Kind.BOOLEAN, default=False),
    Field(name="images", kind=Kind.ARRAY, items=Kind.URI, max_items=2),
    Field(name="strict", kind=Kind.INTEGER, nullable=False),
)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def look(lenient: bool = False, **body: JSON) -> Checked:
    return check(FIELDS, {"prompt": "x", **body}, lenient=lenient, unknown=False)


def test_defaults_fill_what_was_not_said_and_null_is_absent() -> None:
    values = look(steps=None).values
    assert values["steps"] == 4
    assert values["format"] == "png"
    assert values["guidance"] is None


@pytest.mark.parametrize(
    ("body", "rule", "field"),
    [
        ({"steps": 0}, Rule.MIN, "steps"),
        ({"steps": 51}, Rule.MAX, "steps"),
        ({"steps": "4"}, Rule.TYPE, "steps"),
        ({"steps": 4.5}, Rule.TYPE, "steps"),
        ({"steps": True}, Rule.TYPE, "steps"),
        ({"guidance": 10.5}, Rule.MAX, "guidance"),
        ({"guidance": float("inf")}, Rule.OTHER, "guidance"),
        ({"format": "gif"}, Rule.CHOICE, "format"),
        ({"image": ""}, Rule.FORMAT, "image"),
        ({"fast": "true"}, Rule.TYPE, "fast"),
        ({"images": ["a", "b", "c"]}, Rule.MAX_ITEMS, "images"),
        ({"images": ["a", 1]}, Rule.TYPE, "images.1"),
        ({"prompt": "x" * 11}, Rule.OTHER, "prompt"),
        ({"prompt": None}, Rule.REQUIRED, ""),
        ({"strict": None}, Rule.TYPE, "strict"),
        ({"other": 1}, Rule.UNKNOWN, ""),
    ],
)
def test_each_broken_rule_is_named_with_its_field(
    body: dict[str, JSON], rule: Rule, field: str
) -> None:
    problems = look(**body).problems
    assert [(problem.rule, problem.field) for problem in problems] == [(rule, field)]


def test_whole_floats_are_integers_and_integers_are_numbers() -> None:
    values = look(steps=2.0, guidance=3).values
    assert values["steps"] == 2
    assert isinstance(values["steps"], int)
    assert isinstance(values["guidance"], float)


def test_lenient_reading_takes_numbers_and_truths_as_text() -> None:
    values = look(lenient=True, steps="7", guidance="1e0", fast="True").values
    assert (values["steps"], values["guidance"], values["fast"]) == (7, 1.0, True)
    assert look(lenient=True, steps="seven").problems


@given(st.dictionaries(st.sampled_from([field.name for field in FIELDS]), JSONS), st.booleans())
def test_any_body_is_judged_and_never_an_error(body: dict[str, JSON], lenient: bool) -> None:
    checked = check(FIELDS, body, lenient=lenient, unknown=False)
    assert checked.problems or checked.values["prompt"] is not None
    for problem in checked.problems:
        assert problem.message


@given(JSONS)
def test_every_value_has_a_kind(value: JSON) -> None:
    known = {"null", "boolean", "integer", "number", "string", "array", "object"}
    assert kind_of(value) in known


def test_a_field_prints_as_json_schema() -> None:
    assert FIELDS[1].json_schema() == {
        "type": "integer",
        "default": 4,
        "minimum": 1,
        "maximum": 50,
        "nullable": True,
    }
    assert FIELDS[6].json_schema()["items"] == {"type": "string", "format": "uri"}


NAMES = st.sampled_from([field.name for field in FIELDS] + ["other"])
GOOD = st.sampled_from(["x", "png", 4, 4.0, 2.5, True, [], ["a"], {}, "4", " TRUE ", 1e300])


@given(st.dictionaries(NAMES, JSONS | GOOD, max_size=5), st.booleans(), st.booleans())
def test_the_quick_way_and_the_thorough_one_say_the_same(
    body: dict[str, JSON], lenient: bool, unknown: bool
) -> None:
    quick = check(FIELDS, body, parent="input", lenient=lenient, unknown=unknown)
    thorough = _check_each(FIELDS, body, "input", lenient, unknown)
    assert quick == thorough
    kinds = {name: type(value) for name, value in thorough.values.items()}
    assert {name: type(value) for name, value in quick.values.items()} == kinds
    assert list(quick.values) == list(thorough.values)
