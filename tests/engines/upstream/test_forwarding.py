"""What travels to a provider, and what comes back on the way: inputs, progress, cancel."""

import base64
import io
from dataclasses import replace

import pytest
from PIL import Image

from fluxserve.core.attempts import AttemptState
from fluxserve.core.events import EventKind
from fluxserve.core.prediction import PredictionStatus
from fluxserve.core.request import OutputFormat
from fluxserve.engines.upstream.channel import ChannelKind
from tests.engines.upstream.conftest import THEIR_NAMES, House, Lend
from tests.fakes.script import Act, Outcome

KINDS = [ChannelKind.REPLICATE, ChannelKind.BFL, ChannelKind.WAVESPEED, ChannelKind.OPENAI]


def noise(side: int) -> bytes:
    """A PNG that does not compress: about 3 * side * side bytes."""
    out = io.BytesIO()
    Image.effect_noise((side, side), 200).convert("RGB").save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [64, 800])
async def test_an_input_picture_arrives_as_the_provider_wants_it(
    house: House, lend: Lend, kind: ChannelKind, side: int
) -> None:
    fake, spec = lend(kind)
    house.channel(spec)
    await house.open()
    data = noise(side)
    picture = await house.intake.take(data, "image")
    done = await house.made("make it night", images=(picture,))
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    (work,) = fake.works.values()
    sent = str(work.input)
    inline = base64.b64encode(data).decode()
    assert inline in sent or data in fake.uploads.values()
    assert bool(fake.uploads) == (kind is ChannelKind.OPENAI or (
        side == 800 and kind in (ChannelKind.REPLICATE, ChannelKind.WAVESPEED)
    ))  # fmt: skip


async def test_each_kind_is_spoken_to_in_its_own_words(house: House, lend: Lend) -> None:
    heard = {}
    for kind in KINDS:
        fake, spec = lend(kind, models={"*": THEIR_NAMES[kind]})
        house.specs, house.routes = [], []
        house.channel(spec)
        await house.open()
        done = await house.made(seed=7, output_format=OutputFormat.JPEG, aspect_ratio="16:9")
        assert done.status is PredictionStatus.SUCCEEDED, done.failure
        heard[kind] = dict(next(iter(fake.works.values())).input)
        await house.close()
    assert heard[ChannelKind.REPLICATE] == {
        "prompt": "a fox",
        "seed": 7,
        "safety_tolerance": 2,
        "aspect_ratio": "16:9",
        "output_format": "jpg",
    }
    assert heard[ChannelKind.BFL] == {
        "prompt": "a fox",
        "seed": 7,
        "safety_tolerance": 2,
        "aspect_ratio": "16:9",
        "output_format": "jpeg",
    }
    assert heard[ChannelKind.WAVESPEED] == {
        "prompt": "a fox",
        "seed": 7,
        "guidance_scale": 3.5,
        "aspect_ratio": "16:9",
        "output_format": "jpeg",
        "num_images": 1,
    }
    openai = heard[ChannelKind.OPENAI]
    assert openai["size"] == "1328x800"
    assert openai["response_format"] == "b64_json"


async def test_the_operator_may_rename_drop_and_add_fields(house: House, lend: Lend) -> None:
    fake, spec = lend(
        ChannelKind.BFL,
        rename={"aspect_ratio": "ratio", "safety_tolerance": ""},
        extra={"tier": "gold"},
    )
    house.channel(spec)
    await house.open()
    await house.made(seed=7)
    (work,) = fake.works.values()
    assert work.input["ratio"] == "1:1"
    assert work.input["tier"] == "gold"
    assert "safety_tolerance" not in work.input


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reseller_is_found_behind_its_prefix(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind, prefix="/reseller")
    house.channel(spec)
    await house.open()
    assert (await house.made()).status is PredictionStatus.SUCCEEDED
    version = {ChannelKind.WAVESPEED: "/api/v3"}.get(kind, "/v1")
    house.specs[0] = replace(spec, base_url=f"{spec.base_url}{version}/")
    await house.close()
    await house.open()
    assert (await house.made()).status is PredictionStatus.SUCCEEDED
    assert fake.submissions == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_several_pictures_are_made_with_as_many_submissions_as_it_takes(
    house: House, lend: Lend, kind: ChannelKind
) -> None:
    fake, spec = lend(kind)
    house.channel(spec)
    await house.open()
    done = await house.made(num_outputs=3, seed=40)
    assert done.status is PredictionStatus.SUCCEEDED, done.failure
    assert [output.seed for output in done.outputs] == [40, 41, 42]
    assert len({output.blob.key for output in done.outputs}) == 3
    alone = kind in (ChannelKind.REPLICATE, ChannelKind.BFL)
    assert fake.submissions == (3 if alone else 1)


async def test_progress_and_logs_of_the_provider_are_passed_on(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.BFL)
    fake.script.default = Act(pending_polls=2)
    house.channel(spec)
    await house.open()
    seen = []
    house.bus.hook(lambda event: seen.append(event.kind))
    await house.made()
    assert EventKind.PROGRESS in seen
    fake, spec = lend(ChannelKind.REPLICATE)
    await house.close()
    house.specs, house.routes = [], []
    house.channel(spec)
    await house.open()
    done = await house.made(seed=9)
    assert done.logs.startswith("Using seed: 9\n")
    assert "100%" in done.logs
    assert done.metrics["predict_s"] == 1.25


async def test_a_cancel_reaches_a_provider_that_has_one(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.REPLICATE)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(lambda: fake.submissions == 1)
    assert house.service is not None
    done = await house.service.cancel(asked.id)
    assert done.status is PredictionStatus.CANCELED
    (work,) = fake.works.values()
    await house.until(lambda: work.canceled)
    await house.until(lambda: _states(house, asked.id, [AttemptState.CANCELED]))


async def test_where_a_provider_cannot_cancel_its_job_is_followed_quietly(
    house: House, lend: Lend
) -> None:
    fake, spec = lend(ChannelKind.BFL)
    fake.script.default = Act(pending_polls=3)
    house.channel(spec)
    await house.open()
    asked = await house.ask()
    await house.until(lambda: fake.submissions == 1)
    assert house.service is not None
    await house.service.cancel(asked.id)
    await house.until(lambda: _states(house, asked.id, [AttemptState.DONE]))
    (attempt,) = await house.tries(asked)
    assert attempt.cost_micro == 40_000
    final = await house.store.get(asked.id)
    assert final.status is PredictionStatus.CANCELED
    assert final.outputs == ()


async def test_a_job_that_takes_too_long_is_given_up(house: House, lend: Lend) -> None:
    fake, spec = lend(ChannelKind.REPLICATE, deadline_s=0.3)
    fake.script.default = Act(outcome=Outcome.HANG)
    house.channel(spec)
    await house.open()
    done = await house.made()
    assert done.failure is not None
    assert "did not finish within 0.3 s" in done.failure.message
    assert next(iter(fake.works.values())).canceled


async def _states(house: House, prediction_id: str, states: list[AttemptState]) -> bool:
    return [attempt.state for attempt in await house.attempts.of(prediction_id)] == states


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ChannelKind.REPLICATE, "black-forest-labs/flux-kontext-pro"),
        (ChannelKind.BFL, "flux-kontext-pro"),
        (ChannelKind.WAVESPEED, "wavespeed-ai/flux-kontext-pro/text-to-image"),
        (ChannelKind.OPENAI, "flux-kontext-pro"),
    ],
)
async def test_a_model_without_a_name_of_theirs_gets_the_usual_one(
    house: House, lend: Lend, kind: ChannelKind, name: str
) -> None:
    fake, spec = lend(kind, models={"*": ""})
    house.channel(spec)
    await house.open()
    assert (await house.made()).status is PredictionStatus.SUCCEEDED
    assert next(iter(fake.works.values())).model == name
