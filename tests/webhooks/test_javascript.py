"""Bodies are written as JavaScript would write them again after parsing."""

import json
import math
import shutil
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve.core.request import JSON
from fluxserve.webhooks.javascript import number, to_json

GOLDEN: list[tuple[JSON, str]] = [
    ({}, "{}"),
    ([], "[]"),
    ({"a": 1, "b": [1, 2.0, 2.5], "c": None}, '{"a":1,"b":[1,2,2.5],"c":null}'),
    ([True, False], "[true,false]"),
    ("a/b <c> &\u2028é█😀\x7f", '"a/b <c> &\u2028é█😀\x7f"'),
    ('"\\\b\f\n\r\t\x00\x1f', '"\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f"'),
    ("\ud83d alone, \ud83d\ude00 together", '"\\ud83d alone, 😀 together"'),
    ({"b": 1, "10": 2, "a": 3, "9": 4, "01": 5}, '{"9":4,"10":2,"b":1,"a":3,"01":5}'),
    ({"4294967294": 1, "x": 2, "4294967295": 3}, '{"4294967294":1,"x":2,"4294967295":3}'),
    (-0.0, "0"),
    (0.1, "0.1"),
    (1e16, "10000000000000000"),
    (1e21, "1e+21"),
    (1.5e300, "1.5e+300"),
    (123456789.125, "123456789.125"),
    (1e-5, "0.00001"),
    (1e-6, "0.000001"),
    (1e-7, "1e-7"),
    (-1.25e-9, "-1.25e-9"),
    (5e-324, "5e-324"),
    (math.nan, "null"),
    (-math.inf, "null"),
    (4294967295, "4294967295"),
    ((1, 2), "[1,2]"),
]


@pytest.mark.parametrize(("value", "text"), GOLDEN)
def test_values_are_written_like_json_stringify(value: JSON, text: str) -> None:
    assert to_json(value) == text.encode()


def finite() -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False)


@given(finite())
def test_a_number_reads_back_as_itself(value: float) -> None:
    assert float(number(value)) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(json_values)
def test_any_value_reads_back_as_itself(value: JSON) -> None:
    assert json.loads(to_json(value), parse_int=float) == value


if shutil.which("node"):

    def test_node_writes_the_very_same_text() -> None:
        numbers: list[JSON] = [
            struct.unpack("<d", struct.pack("<Q", seed * 0x9E3779B97F4A7C15 % 2**64))[0]
            for seed in range(2000)
        ]
        numbers += [n / 1000 for n in range(2000)] + [10.0**n for n in range(-30, 30)]
        lines = [to_json([value for value, _ in GOLDEN])]
        lines += [to_json({"n": n, "logs": " 50%|█████     |\n"}) for n in numbers]
        script = (
            "const lines = require('fs').readFileSync(0, 'utf8').split('\\n');"
            "process.stdout.write(lines.map(l => JSON.stringify(JSON.parse(l))).join('\\n'))"
        )
        done = subprocess.run(
            ["node", "-e", script], input=b"\n".join(lines), capture_output=True, check=True
        )
        assert done.stdout.split(b"\n") == lines
