"""Inputs that come slowly: waited for under a lease that is kept, and not for ever."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from fluxserve.core.errors import ErrorCode, InputUnreachable
from fluxserve.core.ports import EncodedImage
from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.core.request import ImageInput
from fluxserve.engines.upstream import keeping
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import House, Lend
from tests.fakes.pictures import picture

LEASE_S = 0.4


class Slow:
    """An intake on which each URL takes its time, or never answers."""

    def __init__(
        self, house: House, times_s: Mapping[str, float], lost: Sequence[str] = ()
    ) -> None:
        self.begun: list[str] = []
        self.canceled: list[str] = []
        self._times_s, self._lost = times_s, lost
        house.intake.load = self.load  # type: ignore[method-assign]

    async def load(self, image: ImageInput) -> EncodedImage:
        name = image.field_name
        self.begun.append(name)
        try:
            await asyncio.sleep(self._times_s[name])
        except asyncio.CancelledError:
            self.canceled.append(name)
            raise
        if name in self._lost:
            raise InputUnreachable("it does not answer")
        data = picture(1, 64, 64, "png")
        return EncodedImage(data=data, mime="image/png", width=64, height=64)


async def asked_with(house: House, lend: Lend, *names: str) -> Prediction:
    _, spec = lend(ChannelKind.BFL)
    house.channel(spec)
    await house.open()
    assert house.desk is not None
    house.desk.lease_s = LEASE_S
    links = [ImageInput(url=f"https://example.com/{name}", field_name=name) for name in names]
    return await house.ask(images=tuple(links))


def is_lost(house: House, prediction: Prediction) -> Callable[[], Any]:
    """Whether a keeper would take the prediction for one that lost its worker."""

    async def look() -> bool:
        return prediction.id in [row.id for row in await house.store.expired(house.clock())]

    return look


async def test_the_lease_is_kept_while_inputs_take_longer_than_it_lasts(
    house: House, lend: Lend
) -> None:
    Slow(house, {"one": 4 * LEASE_S})
    asked = await asked_with(house, lend, "one")
    waiting = asyncio.create_task(house.end(asked))
    while not waiting.done():
        assert not await is_lost(house, asked)()
        await asyncio.sleep(0.02)
    done = await waiting
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert done.attempt == 1


async def test_the_lease_is_kept_while_a_provider_takes_long_over_an_upload(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    Slow(house, {"one": 0.0})
    asked = await asked_with(house, lend, "one")
    assert house.desk is not None
    provider = house.desk.channels["bfl"].provider
    prepare = provider.prepare

    async def slowly(order: Any) -> Any:
        await asyncio.sleep(3 * LEASE_S)
        return await prepare(order)

    monkeypatch.setattr(provider, "prepare", slowly)
    waiting = asyncio.create_task(house.end(asked))
    while not waiting.done():
        assert not await is_lost(house, asked)()
        await asyncio.sleep(0.02)
    assert (await waiting).status is PredictionStatus.SUCCEEDED


async def test_inputs_are_fetched_side_by_side(house: House, lend: Lend) -> None:
    slow = Slow(house, dict.fromkeys(("one", "two", "three"), 0.5))
    began = asyncio.get_running_loop().time()
    done = await house.end(await asked_with(house, lend, "one", "two", "three"))
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert slow.begun == ["one", "two", "three"]
    assert asyncio.get_running_loop().time() - began < 1.4


async def test_of_several_wrong_inputs_the_first_in_order_is_named(
    house: House, lend: Lend
) -> None:
    times_s = {"one": 0.0, "two": 0.2, "three": 0.0, "four": 60.0}
    slow = Slow(house, times_s, lost=("two", "three"))
    done = await house.end(await asked_with(house, lend, "one", "two", "three", "four"))
    assert done.failure is not None
    assert done.failure.code is ErrorCode.INPUT_UNREACHABLE
    assert done.failure.field == "two"
    assert slow.canceled == ["four"]  # nobody needs it now


async def test_inputs_that_take_for_ever_end_the_prediction(
    house: House, lend: Lend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "READY_S", 0.5)
    slow = Slow(house, {"one": 60.0})
    done = await house.end(await asked_with(house, lend, "one"))
    assert done.failure is not None
    assert done.failure.code is ErrorCode.TIMED_OUT
    assert "input pictures" in done.failure.message
    assert slow.begun == slow.canceled == ["one"]
    assert await house.tries(done) == []  # nothing was sent


async def test_inputs_of_a_canceled_prediction_are_not_waited_for(house: House, lend: Lend) -> None:
    slow = Slow(house, {"one": 60.0})
    asked = await asked_with(house, lend, "one")
    await house.until(lambda: slow.begun)
    assert house.service is not None
    await house.service.cancel(asked.id)
    await house.until(lambda: slow.canceled)
    assert await house.tries(asked) == []
