"""The engine process for real, on the model of the package: pictures, cancel, death, hanging."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file

from fluxserve.core.errors import EngineError, ErrorCode, InvalidRequest, StartupError
from fluxserve.core.ports import (
    EncodedImage,
    EngineUpdate,
    Job,
    Log,
    Output,
    Preview,
    Progress,
    Report,
)
from fluxserve.core.request import ImageRequest, LoraRef, Margins, OutputFormat, Task
from fluxserve.engines.local.engine import LocalEngine
from fluxserve.engines.local.loras import LoraFiles
from fluxserve.engines.local.start import Setup
from fluxserve.flux import sample, weights
from fluxserve.flux.autoencoder import from_pixels
from fluxserve.flux.folder import embedded_folder, inspect
from fluxserve.flux.spec import Guidance
from fluxserve.images.codec import encode

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "fluxserve/embedded"
WIDTH = inspect(embedded_folder()).transformer.width
SIDE = inspect(embedded_folder()).native_size or 64


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalEngine]:
    spool = tmp_path_factory.mktemp("spool")
    setup = Setup(model=embedded_folder(), device="cpu", threads=1, spool=spool)
    folder = tmp_path_factory.mktemp("loras")
    pair = {"lora_A": torch.randn(4, WIDTH), "lora_B": torch.randn(WIDTH, 4)}
    layer = "transformer.single_transformer_blocks.0.attn.to_v"
    save_file(
        {f"{layer}.{name}.weight": x for name, x in pair.items()}, folder / "wild.safetensors"
    )
    (folder / "broken.safetensors").write_bytes(b"nothing")
    found = LocalEngine("embedded", [setup], loras=LoraFiles(folder))
    await found.start()
    await found.wait_ready()
    yield found
    await found.stop()


def photo(width: int = SIDE, height: int = SIDE) -> Image.Image:
    red, green = Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90)
    both = Image.merge("RGB", (red, green, Image.radial_gradient("L")))
    return both.resize((width, height))


def job(id_: str, prompt: str, picture: Image.Image | None = None, **changes: object) -> Job:
    said: dict[str, object] = {
        "model": MODEL,
        "task": Task.TEXT_TO_IMAGE if picture is None else Task.EDIT,
        "prompt": prompt,
        "width": SIDE,
        "height": SIDE,
        "num_steps": 4,
        "guidance": 2.0,
        "seed": 7,
        **changes,
    }
    return Job(
        prediction_id=id_,
        attempt=1,
        request=ImageRequest(**said),  # type: ignore[arg-type]
        images=() if picture is None else (encode(picture, OutputFormat.PNG),),
        created_at=datetime.now(UTC),
    )


async def collect(engine: LocalEngine, wanted: Job) -> list[EngineUpdate]:
    async with asyncio.timeout(120), aclosing(engine.run(wanted)) as updates:
        return [update async for update in updates]


def outputs(updates: Sequence[EngineUpdate]) -> list[Output]:
    return sorted((u for u in updates if isinstance(u, Output)), key=lambda u: u.index)


def report(updates: Sequence[EngineUpdate]) -> Report:
    (found,) = (u for u in updates if isinstance(u, Report))
    return found


def pixels(image: EncodedImage) -> Image.Image:
    return Image.open(BytesIO(image.data)).convert("RGB")


def difference(first: Image.Image, second: Image.Image) -> int:
    """The largest difference of any channel of any pixel."""
    return max(high for _, high in ImageChops.difference(first, second).getextrema())  # type: ignore[misc]


async def test_the_server_process_does_not_import_torch() -> None:
    code = "import fluxserve.engines.local.engine, sys; print('torch' in sys.modules)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert (await process.communicate())[0].strip() == b"False"


async def test_a_picture_equals_the_one_the_model_makes_without_an_engine(
    engine: LocalEngine,
) -> None:
    torch.set_num_threads(1)
    model = weights.load(embedded_folder(), device="cpu")
    assert model.spec.guidance is Guidance.TRUE_CFG
    raw = torch.frombuffer(bytearray(photo().tobytes()), dtype=torch.uint8)
    reference = model.autoencoder.encode(from_pixels(raw.reshape(SIDE, SIDE, 3)))
    made = sample.begin(
        model,
        sample.condition(
            model,
            prompt="make it sepia",
            width=SIDE,
            height=SIDE,
            num_steps=4,
            guidance=1.5,
            references=[reference],
        ),
        seed=7,
    )
    while not made.is_done:
        sample.advance(model, [made])
    expected = Image.frombytes("RGB", (SIDE, SIDE), sample.finish(model, made).numpy().tobytes())
    updates = await collect(engine, job("equal", "make it sepia", photo(), guidance=1.5))
    (output,) = outputs(updates)
    assert difference(pixels(output.image), expected) <= 1
    assert output.seed == 7


async def test_the_same_request_gives_the_same_bytes_alone_and_in_company(
    engine: LocalEngine,
) -> None:
    (alone,) = outputs(await collect(engine, job("a0", "a red apple")))
    crowd = [
        job("a1", "a red apple"),
        job("a2", "make it sepia", photo(), num_steps=6),
        job("a3", "a taxi", num_steps=3, guidance=1.0),
    ]
    found = await asyncio.gather(*(collect(engine, wanted) for wanted in crowd))
    (again,) = outputs(found[0])
    assert difference(pixels(again.image), pixels(alone.image)) <= 1


async def test_a_run_tells_its_progress_previews_and_facts(engine: LocalEngine) -> None:
    updates = await collect(engine, job("told", "a taxi", num_steps=6, preview_steps=2))
    progress = [u for u in updates if isinstance(u, Progress)]
    assert (progress[-1].step, progress[-1].total) == (6, 6)
    previews = [u for u in updates if isinstance(u, Preview)]
    assert [u.step for u in previews] == [2, 4]
    assert pixels(previews[0].image).size == (256, 256)
    facts = report(updates)
    assert "cpu" in facts.served_by
    assert facts.metrics["model_calls"] == 6
    assert isinstance(updates[-1], Report)


async def test_a_size_the_model_does_not_know_is_enlarged_and_said(engine: LocalEngine) -> None:
    wanted = job("large", "a red apple", width=640, height=360, output_format=OutputFormat.JPEG)
    updates = await collect(engine, wanted)
    (output,) = outputs(updates)
    assert (output.image.width, output.image.height) == (640, 360)
    assert pixels(output.image).size == (640, 360)
    assert output.image.mime == "image/jpeg"
    assert report(updates).metrics["upscaled_from"] == f"{SIDE}x{SIDE}"
    assert any("is enlarged to 640 x 360" in u.text for u in updates if isinstance(u, Log))


async def test_every_output_has_its_own_seed_and_picture(engine: LocalEngine) -> None:
    many = outputs(await collect(engine, job("many", "a taxi", num_outputs=3)))
    assert [(u.index, u.seed) for u in many] == [(0, 7), (1, 8), (2, 9)]
    (second,) = outputs(await collect(engine, job("second", "a taxi", seed=8)))
    assert difference(pixels(many[1].image), pixels(second.image)) <= 1
    assert difference(pixels(many[0].image), pixels(second.image)) > 10


async def test_a_masked_picture_changes_inside_the_mask_only(engine: LocalEngine) -> None:
    mask = Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 48, 64))
    wanted = job("fill", "a red apple", photo(96, 64), task=Task.FILL)
    wanted = replace(wanted, mask=encode(mask, OutputFormat.PNG))
    (output,) = outputs(await collect(engine, wanted))
    made, right = pixels(output.image), (48, 0, 96, 64)
    assert made.size == (96, 64)
    assert difference(made.crop(right), photo(96, 64).crop(right)) == 0
    left = (0, 0, 48, 64)
    assert difference(made.crop(left), photo(96, 64).crop(left)) > 10


async def test_a_grown_canvas_keeps_the_picture(engine: LocalEngine) -> None:
    margins = Margins(left=16, right=16, top=8)
    wanted = job("grow", "", photo(), task=Task.EXPAND, margins=margins)
    (output,) = outputs(await collect(engine, wanted))
    made = pixels(output.image)
    assert made.size == (SIDE + 32, SIDE + 8)
    assert difference(made.crop((16, 8, 16 + SIDE, 8 + SIDE)), photo()) == 0


async def test_little_strength_stays_close_to_the_picture(engine: LocalEngine) -> None:
    common = {"task": Task.IMAGE_TO_IMAGE, "num_steps": 10}
    near = job("near", "a taxi", photo(), strength=0.1, **common)
    far = job("far", "a taxi", photo(), strength=1.0, **common)
    found = await asyncio.gather(collect(engine, near), collect(engine, far))
    (kept,), (lost,) = (outputs(updates) for updates in found)

    def distance(image: EncodedImage) -> float:
        histogram = ImageChops.difference(pixels(image), photo()).convert("L").histogram()
        return sum(level * count for level, count in enumerate(histogram)) / SIDE**2

    assert distance(kept.image) < 25 < distance(lost.image)
    assert report(found[0]).metrics["model_calls"] == 1


async def test_a_lora_changes_its_own_picture_only(engine: LocalEngine) -> None:
    plain = job("plain", "a taxi")
    dressed = job("dressed", "a taxi", loras=(LoraRef(path="wild", scale=0.2),))
    before, during, changed = await asyncio.gather(
        collect(engine, replace(plain, prediction_id="before")),
        collect(engine, plain),
        collect(engine, dressed),
    )
    (first,), (second,), (third,) = (outputs(updates) for updates in (before, during, changed))
    assert difference(pixels(first.image), pixels(second.image)) <= 1
    assert difference(pixels(first.image), pixels(third.image)) > 10


@pytest.mark.parametrize("name", ["nobody", "../wild", "/etc/passwd", "broken", ""])
async def test_a_lora_that_cannot_be_used_fails_its_request(engine: LocalEngine, name: str) -> None:
    with pytest.raises(EngineError, match="loras: ") as caught:
        await collect(engine, job("lora", "a taxi", loras=(LoraRef(path=name),)))
    assert (caught.value.code, caught.value.field) == (ErrorCode.INVALID_REQUEST, "loras")


async def test_four_pictures_can_be_read_at_once(engine: LocalEngine) -> None:
    wanted = job("four", "make it sepia", photo())
    wanted = replace(wanted, images=wanted.images * 4)
    assert len(outputs(await collect(engine, wanted))) == 1


async def test_a_fast_run_says_what_it_left_out(engine: LocalEngine) -> None:
    updates = await collect(engine, job("fast", "a taxi", num_steps=28, go_fast=True))
    facts = report(updates).metrics
    assert (facts["model_calls"], facts["approximations"]) == (13, ["skip"])


async def test_a_picture_seen_before_is_not_encoded_again(engine: LocalEngine) -> None:
    await collect(engine, job("seen", "make it sepia", photo(SIDE, 48)))
    again = report(await collect(engine, job("again", "make it grayscale", photo(SIDE, 48))))
    caches = again.metrics["caches"]
    assert isinstance(caches, dict)
    assert caches["references"]["hits"] >= 1


async def test_a_picture_that_cannot_be_read_fails_alone_and_names_the_field(
    engine: LocalEngine,
) -> None:
    broken = job("broken", "make it sepia", photo())
    whole = broken.images[0]
    broken = replace(broken, images=(replace(whole, data=whole.data[:200]),))
    good = asyncio.create_task(collect(engine, job("good", "a taxi")))
    with pytest.raises(EngineError, match="images") as caught:
        await collect(engine, broken)
    assert caught.value.code == InvalidRequest.code
    assert caught.value.field == "images"
    assert outputs(await good)


async def test_closing_a_run_stops_it_within_a_step(engine: LocalEngine) -> None:
    async with (
        asyncio.timeout(60),
        aclosing(engine.run(job("long", "a taxi", num_steps=2000))) as run,
    ):
        async for update in run:
            if isinstance(update, Progress) and update.step > 2:
                break
    assert engine.processes[0].jobs == 0
    assert outputs(await collect(engine, job("after", "a taxi")))


async def test_an_estimate_grows_with_the_work(engine: LocalEngine) -> None:
    short = engine.estimate(job("x", "a taxi").request)
    long = engine.estimate(job("x", "a taxi", num_steps=40, num_outputs=2).request)
    assert short is not None
    assert long is not None
    assert long == pytest.approx(20 * short)


async def test_a_killed_process_is_replaced_and_its_jobs_end_with_the_same_picture(
    engine: LocalEngine,
) -> None:
    (expected,) = outputs(await collect(engine, job("calm", "a taxi", num_steps=30)))
    killed = False
    updates = []
    async with (
        asyncio.timeout(120),
        aclosing(engine.run(job("hit", "a taxi", num_steps=30))) as run,
    ):
        async for update in run:
            updates.append(update)
            if isinstance(update, Progress) and update.step > 3 and not killed:
                killed = True
                assert engine.processes[0].pid is not None
                os.kill(engine.processes[0].pid, signal.SIGKILL)
    assert killed
    (output,) = outputs(updates)
    assert difference(pixels(output.image), pixels(expected.image)) <= 1
    assert any("restarted" in u.text for u in updates if isinstance(u, Log))


async def test_a_hanging_process_is_replaced(tmp_path: Path) -> None:
    setup = Setup(model=embedded_folder(), device="cpu", threads=1, spool=tmp_path, silence_s=4.0)
    engine = LocalEngine("embedded", [setup])
    await engine.start()
    try:
        before = engine.trouble
        await engine.wait_ready()
        assert (before is None, engine.trouble is None) == (False, True)
        pid = engine.processes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert outputs(await collect(engine, job("stuck", "a taxi")))
        assert engine.processes[0].deaths == 1
        assert engine.processes[0].pid != pid
    finally:
        await engine.stop()
    assert not os.listdir(tmp_path)


async def kill_under(engine: LocalEngine, wanted: Job) -> None:
    """Kill the process each time it has begun with the job."""
    (process,) = engine.processes
    kills = 0
    async with asyncio.timeout(120), aclosing(engine.run(wanted)) as run:
        async for update in run:
            has_begun = isinstance(update, Progress) and update.step > 0
            if has_begun and process.pid is not None and process.deaths == kills:
                kills += 1
                os.kill(process.pid, signal.SIGKILL)


async def test_a_request_that_kills_the_process_twice_fails(tmp_path: Path) -> None:
    setup = Setup(model=embedded_folder(), device="cpu", threads=1, spool=tmp_path)
    engine = LocalEngine("embedded", [setup])
    await engine.start()
    try:
        with pytest.raises(EngineError, match="stopped 2 times while it worked on this request"):
            await kill_under(engine, job("bad", "a taxi", num_steps=2000))
    finally:
        await engine.stop()


async def test_a_model_that_cannot_be_loaded_is_trouble_with_a_reason(tmp_path: Path) -> None:
    setup = Setup(model=embedded_folder(), device="cuda:77", threads=1, spool=tmp_path)
    engine = LocalEngine("local", [setup])
    await engine.start()
    try:
        with pytest.raises(EngineError, match="device"):
            await engine.wait_ready()
        assert "device" in (engine.trouble or "")
    finally:
        await engine.stop()


PARENT = """
import asyncio, os, sys
from pathlib import Path
from fluxserve.engines.local.process import EngineProcess
from fluxserve.engines.local.start import Setup
from fluxserve.flux.folder import embedded_folder

async def main():
    process = EngineProcess(Setup(model=embedded_folder(), device="cpu", spool=Path(sys.argv[1])))
    await process.start()
    await process.wait_ready()
    print(process.pid, flush=True)
    os._exit(9)

asyncio.run(main())
"""


async def test_the_process_ends_when_its_server_is_killed(tmp_path: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    pid = int((await server.communicate())[0])
    async with asyncio.timeout(30):
        while is_alive(pid):
            await asyncio.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Neither gone nor waiting to be buried by whoever adopted it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_a_folder_that_is_no_model_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"model_index\.json: missing"):
        LocalEngine("local", [Setup(model=tmp_path, spool=tmp_path)])
