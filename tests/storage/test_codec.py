"""What goes into a column comes out the same."""

import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve.core.errors import ErrorCode, Failure, Problem, Rule
from fluxserve.core.prediction import OutputImage
from fluxserve.core.request import (
    Approximation,
    BlobRef,
    ImageInput,
    ImageRequest,
    LoraRef,
    Margins,
    Origin,
    OutputFormat,
    Task,
    WebhookSpec,
)
from fluxserve.storage import codec

words = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates, NUL and all
whole = st.integers(min_value=-(2**31), max_value=2**33)
few = settings(max_examples=40)
real = st.floats(allow_nan=False, allow_infinity=False)
maps = st.dictionaries(
    words,
    st.recursive(
        st.none() | st.booleans() | whole | real | words,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
blobs = st.builds(BlobRef)
inputs = st.builds(ImageInput, blob=blobs, url=st.none(), field_name=words) | st.builds(
    ImageInput, blob=st.none(), url=words, field_name=words
)


@few
@given(
    st.builds(
        ImageRequest,
        task=st.sampled_from(Task),
        images=st.lists(inputs, max_size=3).map(tuple),
        mask=st.none() | inputs,
        guidance=real,
        strength=real,
        output_format=st.sampled_from(OutputFormat),
        margins=st.none() | st.builds(Margins),
        approximate=st.none() | st.lists(st.sampled_from(Approximation), max_size=3).map(tuple),
        loras=st.lists(st.builds(LoraRef, scale=real), max_size=2).map(tuple),
    )
)
def test_a_request_survives(request_: ImageRequest) -> None:
    assert codec.decode_request(codec.encode_request(request_)) == request_


@few
@given(
    st.builds(
        Origin,
        said=maps,
        extra=maps,
        webhook=st.none() | st.builds(WebhookSpec, events=st.lists(words, max_size=3).map(tuple)),
    )
)
def test_an_origin_survives(origin: Origin) -> None:
    assert codec.decode_origin(codec.encode_origin(origin)) == origin


@few
@given(
    st.builds(
        Failure,
        code=st.sampled_from(ErrorCode),
        retry_after_s=st.none() | real,
        problems=st.lists(
            st.builds(
                Problem,
                rule=st.sampled_from(Rule),
                limit=st.none() | real,
                choices=st.lists(words, max_size=2).map(tuple),
            ),
            max_size=2,
        ).map(tuple),
    )
)
def test_a_failure_survives(failure: Failure) -> None:
    assert codec.decode_failure(codec.encode_failure(failure)) == failure


@few
@given(st.lists(st.builds(OutputImage, blob=blobs), max_size=3).map(tuple))
def test_outputs_survive(outputs: tuple[OutputImage, ...]) -> None:
    assert codec.decode_outputs(codec.encode_outputs(outputs)) == outputs


@few
@given(words)
def test_words_survive_as_text_that_databases_take(text: str) -> None:
    assert b"\0" not in codec.encode_words(text).encode()
    assert codec.decode_words(codec.encode_words(text)) == text


@few
@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_to_the_microsecond(at: datetime) -> None:
    assert codec.to_time(codec.to_micros(at)) == at


def test_a_time_counts_from_the_epoch_in_any_zone() -> None:
    east = timezone(timedelta(hours=2))
    assert codec.to_micros(datetime(1970, 1, 1, 2, 0, 1, 5, tzinfo=east)) == 1_000_005


def test_a_time_without_zone_is_our_mistake() -> None:
    with pytest.raises(TypeError):
        codec.to_micros(datetime(2026, 1, 1))


def request_() -> ImageRequest:
    plain: dict[str, Any] = {"width": 64, "height": 64, "num_steps": 4, "guidance": 2.5, "seed": 7}
    return ImageRequest(model="tiny", task=Task.EDIT, prompt="a fox", **plain)


def test_fields_of_a_newer_build_are_ignored() -> None:
    data = {**json.loads(codec.encode_request(request_())), "invented_later": [1]}
    assert codec.decode_request(json.dumps(data)) == request_()


def test_fields_of_a_newer_build_that_are_missing_take_their_default() -> None:
    data = json.loads(codec.encode_request(request_()))
    assert set(data) < {field.name for field in fields(ImageRequest)}
    assert codec.decode_request(json.dumps(data)).strength == 1.0


def test_words_of_a_newer_build_are_read_as_the_nearest_of_ours() -> None:
    problem = {"field": "seed", "rule": "phase_of_the_moon", "message": "waning", "choices": []}
    told = {"code": "lost_in_orbit", "message": "gone", "problems": [problem]}
    found = codec.decode_failure(json.dumps(told))
    assert found is not None
    assert (found.code, found.message) == (ErrorCode.INTERNAL, "gone")
    assert found.problems[0].rule is Rule.OTHER
    asked = json.loads(codec.encode_request(request_())) | {"approximate": ["skip", "guess"]}
    assert codec.decode_request(json.dumps(asked)).approximate == (Approximation.SKIP,)


def test_any_mapping_and_sequence_is_json() -> None:
    said = MappingProxyType({"a": (1, 2), "b": range(2)})
    assert codec.decode_map(codec.encode_map(said)) == {"a": [1, 2], "b": [0, 1]}


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        codec.dump(object())  # type: ignore[arg-type]
