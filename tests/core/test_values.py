"""Ids, the table of moves, sizes, keys: the values everything else stands on."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.core.access import ApiKey, Caller, hash_secret, new_secret
from fluxserve.core.errors import Conflict, ErrorCode, Failure, Forbidden
from fluxserve.core.ids import new_id, parse_id, to_base32, to_uuid
from fluxserve.core.prediction import NEXT, Prediction, PredictionStatus
from fluxserve.core.request import ImageRequest, Origin, Task
from fluxserve.core.sizes import KONTEXT_SIZES, Size, nearest, of_area, parse_ratio, parse_size

AT = datetime(2026, 1, 2, tzinfo=UTC)
FAILURE = Failure(code=ErrorCode.ENGINE_FAILED, message="no")


def prediction() -> Prediction:
    request = ImageRequest(
        model="m",
        task=Task.TEXT_TO_IMAGE,
        prompt="a fox",
        width=64,
        height=64,
        num_steps=4,
        guidance=1.0,
        seed=7,
    )
    origin = Origin(dialect="native")
    return Prediction(id=new_id(), request=request, origin=origin, engine="e", created_at=AT)


@given(st.integers(min_value=0, max_value=2**128 - 1))
def test_an_id_is_read_back_from_every_alphabet(number: int) -> None:
    id_ = f"{number:032x}"
    assert len(to_base32(id_)) == 26
    for spelled in (id_, to_base32(id_), to_uuid(id_), to_uuid(id_).upper()):
        assert parse_id(spelled) == id_


@given(st.text(max_size=60))
def test_what_is_no_id_is_none_and_never_an_error(text: str) -> None:
    found = parse_id(text)
    assert found is None or len(found) == 32


@pytest.mark.parametrize(("before", "after"), list(product(PredictionStatus, PredictionStatus)))
def test_every_move_is_in_the_table_or_refused(
    before: PredictionStatus, after: PredictionStatus
) -> None:
    row = replace(prediction(), status=before)
    moves = {
        PredictionStatus.QUEUED: lambda: row.requeue(),
        PredictionStatus.RUNNING: lambda: row.start(AT),
        PredictionStatus.SUCCEEDED: lambda: row.succeed((), AT, {}),
        PredictionStatus.FAILED: lambda: row.fail(FAILURE, AT),
        PredictionStatus.CANCELED: lambda: row.cancel(AT),
        PredictionStatus.EXPIRED: lambda: row.expire(AT),
    }
    if after in NEXT[before]:
        assert moves[after]().status is after
    else:
        with pytest.raises(Conflict):
            moves[after]()


def test_nothing_leaves_a_terminal_state() -> None:
    terminal = [status for status in PredictionStatus if status.is_terminal]
    assert {status.value for status in terminal} == {"succeeded", "failed", "canceled", "expired"}


def test_a_rerun_keeps_the_seed_and_raises_the_fence() -> None:
    first = prediction().start(AT)
    second = first.requeue().start(AT)
    assert second.request.seed == first.request.seed
    assert second.attempt == first.attempt + 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024x768", Size(1024, 768)), ("512 * 512", Size(512, 512)), ("64X65", Size(64, 65))],
)
def test_sizes_are_read_in_every_spelling(text: str, size: Size) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "0:1", "1:0", "16/9", "1:1:1", "-1:2"])
def test_what_is_no_ratio_is_none(text: str) -> None:
    assert parse_ratio(text) is None


@given(st.floats(0.25, 4.0), st.integers(4096, 4_000_000))
def test_a_size_of_an_area_is_near_it_and_on_the_grid(ratio: float, area: int) -> None:
    size = of_area(ratio, area, 16)
    assert size.width % 16 == 0
    assert size.height % 16 == 0
    assert 0.5 < size.area / area < 2.0


@given(st.sampled_from(KONTEXT_SIZES))
def test_a_preferred_size_is_its_own_nearest(size: Size) -> None:
    assert nearest(size.ratio, KONTEXT_SIZES) == size


def key(**more: object) -> ApiKey:
    base = ApiKey(id="k", name="", prefix="fx_", hash=hash_secret("s"), created_at=AT)
    return replace(base, **more)  # type: ignore[arg-type]


def test_a_key_dies_when_revoked_or_expired() -> None:
    assert key().is_valid(AT)
    assert not key(revoked_at=AT).is_valid(AT)
    assert not key(expires_at=AT).is_valid(AT + timedelta(seconds=1))


def test_a_caller_sees_its_own_and_an_admin_everything() -> None:
    caller = Caller(key=key())
    assert caller.may_see("k")
    assert not caller.may_see("other")
    assert not caller.may_see(None)
    assert Caller(key=key(), is_admin=True).may_see("other")


def test_a_key_opens_only_its_models() -> None:
    Caller(key=key()).may_use("any")
    with pytest.raises(Forbidden):
        Caller(key=key(models=("a/b",))).may_use("c/d")


def test_secrets_are_long_and_never_alike() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert len(new_secret()) >= 40
