"""The main job, through the front door: a photo is edited by the model that ships with the server.

One real server process with nothing configured; the unmodified Python SDK of Replicate, plain
HTTP with the request bodies that people's code sends, and the command line.
"""

import base64
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import replicate
from PIL import Image, ImageChops, ImageDraw, ImageStat
from replicate.helpers import FileOutput

from tests.server import ServerProcess

KONTEXT = "black-forest-labs/flux-kontext-dev"
SIDE = 256
# Request bodies as found in the documentation of resellers; pictures are put in by the tests.
SEEDS: dict[str, dict[str, Any]] = {
    "black-forest-labs/flux-kontext-dev": {
        "prompt": "Change the car color to red, turn the headlights on",
        "go_fast": True,
        "guidance": 2.5,
        "input_image": "",
        "aspect_ratio": "match_input_image",
        "output_format": "jpg",
        "output_quality": 80,
        "num_inference_steps": 30,
    },
    "black-forest-labs/flux-kontext-pro": {
        "prompt": "Make this a 90s cartoon",
        "input_image": "",
        "aspect_ratio": "match_input_image",
        "output_format": "jpg",
        "safety_tolerance": 2,
        "prompt_upsampling": False,
    },
    "black-forest-labs/flux-pro": {
        "steps": 25,
        "width": 1024,
        "height": 1024,
        "prompt": "The world's largest black forest cake, the size of a building, surrounded by"
        " trees of the black forest",
        "guidance": 3,
        "interval": 2,
        "aspect_ratio": "1:1",
        "output_format": "webp",
        "output_quality": 80,
        "safety_tolerance": 2,
        "prompt_upsampling": False,
    },
}
# What their answers hold, field by field.
FIELDS = {
    "id", "model", "version", "input", "logs", "output", "data_removed", "error", "status",
    "created_at", "urls",
}  # fmt: skip
URLS = {"cancel", "get", "stream", "web"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Nothing configured: the embedded model answers."""
    process = ServerProcess(tmp_path_factory.mktemp("data"))
    yield process
    process.stop()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red apple of sorts on a blue background."""
    image = Image.new("RGB", (SIDE, SIDE), (40, 70, 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((50, 70, 206, 226), fill=(220, 40, 30))
    draw.line((128, 80, 140, 40), fill=(90, 50, 20), width=10)
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    image.save(path, quality=92)
    return path


def data_uri(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    pair = [image.convert("RGB").resize((64, 64)) for image in (one, other)]
    return sum(ImageStat.Stat(ImageChops.difference(*pair)).mean) / 3


def colourfulness(image: Image.Image) -> float:
    """Mean distance between the channels of a pixel, 0 to 255."""
    red, green, blue = image.convert("RGB").resize((64, 64)).split()
    pairs = ((red, green), (green, blue), (red, blue))
    return sum(ImageStat.Stat(ImageChops.difference(*pair)).mean[0] for pair in pairs) / 3


def test_the_python_sdk_of_replicate_edits_an_open_file(server: ServerProcess, photo: Path) -> None:
    client = replicate.Client(base_url=server.url, api_token="any")
    with photo.open("rb") as file:
        wish = {
            "prompt": "make it grayscale",
            "input_image": file,
            "aspect_ratio": "match_input_image",
            "output_format": "png",
            "seed": 3,
        }
        output = client.run(KONTEXT, input=wish)
    assert isinstance(output, FileOutput)
    before, after = opened(photo.read_bytes()), opened(output.read())
    client._client.close()  # the SDK has no way of its own
    assert (after.format, after.width) == ("PNG", after.height)
    assert difference(before, after) > 5
    assert colourfulness(after) < colourfulness(before) / 2  # the model did as it was told


@pytest.mark.parametrize("model", list(SEEDS))
def test_request_bodies_that_people_send_are_answered_in_the_shape_they_expect(
    model: str, server: ServerProcess, photo: Path
) -> None:
    wish = dict(SEEDS[model])
    if "input_image" in wish:
        wish["input_image"] = data_uri(photo)
    url = f"{server.url}/replicate/v1/models/{model}/predictions"
    headers = {"Authorization": "Bearer YOUR_TOKEN"}
    answer = httpx.post(url, json={"input": wish}, headers=headers)
    assert answer.status_code in (200, 201)
    told = answer.json()
    assert set(told) >= FIELDS
    assert re.fullmatch(r"[a-z0-9]{26}", told["id"])
    assert (told["model"], told["version"]) == (model, "hidden")
    assert told["input"] == wish
    assert list(told["input"]) == sorted(wish)
    assert (told["logs"], told["output"], told["error"]) == ("", None, None)
    assert (told["data_removed"], told["status"]) == (False, "starting")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,6}Z", told["created_at"])
    assert set(told["urls"]) == URLS
    assert all(link.startswith(server.url) for link in told["urls"].values())

    with httpx.stream("GET", told["urls"]["stream"], timeout=60) as stream:
        events = stream.read().decode()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert "event: output" in events
    assert "event: done" in events
    done = httpx.get(told["urls"]["get"], headers=headers).json()
    assert (done["status"], done["error"]) == ("succeeded", None)
    assert done["metrics"]["predict_time"] > 0
    assert "Using seed" in done["logs"]
    output = done["output"] if isinstance(done["output"], str) else done["output"][0]
    picture = opened(httpx.get(output).content)
    assert picture.format == {"jpg": "JPEG", "webp": "WEBP"}[wish["output_format"]]
    assert picture.width == picture.height
    if "input_image" in wish:
        assert difference(opened(photo.read_bytes()), picture) > 2
    else:
        assert picture.size == (1024, 1024)
    assert httpx.get(told["urls"]["web"]).status_code == 200
    late = httpx.post(told["urls"]["cancel"], headers=headers)
    assert (late.status_code, late.json()["status"]) == (200, "succeeded")


def test_the_command_line_edits_a_photo(server: ServerProcess, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    words = ["edit", str(photo), "make it grayscale", "-o", str(out), "--seed", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "fluxserve", *words, "--server", server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(out)), done.stderr
    before, after = opened(photo.read_bytes()), opened(out.read_bytes())
    assert after.format == "PNG"
    assert colourfulness(after) < colourfulness(before) / 2


def test_cancel_ends_a_prediction_that_runs(server: ServerProcess, photo: Path) -> None:
    wish = {"prompt": "make it grayscale", "input_image": data_uri(photo)}
    url = f"{server.url}/v1/models/{KONTEXT}/predictions"
    told = httpx.post(url, json={"input": {**wish, "num_inference_steps": 50}}).json()
    ended = httpx.post(told["urls"]["cancel"]).json()
    assert (ended["status"], ended["output"]) == ("canceled", None)
    assert httpx.get(told["urls"]["get"]).json()["status"] == "canceled"


def test_a_killed_engine_makes_the_same_picture_as_an_undisturbed_one(
    server: ServerProcess, photo: Path
) -> None:
    wish = {
        "model": KONTEXT,
        "prompt": "make it grayscale",
        "images": [data_uri(photo)],
        "seed": 11,
        "num_steps": 60,
        "preview_steps": 0,
    }
    api = f"{server.url}/fluxserve/v1/predictions"
    undisturbed = picture_of(httpx.get(f"{created(api, wish)['get']}?wait=60", timeout=70).json())
    links = created(api, wish)
    is_killed = False
    with httpx.stream("GET", links["events"], timeout=60) as stream:
        for line in stream.iter_lines():
            if line == "event: progress" and not is_killed:
                is_killed = True
                kill_engine(server.pid)
    done = httpx.get(f"{links['get']}?wait=60", timeout=70).json()
    assert is_killed
    assert "The engine was restarted" in done["logs"]
    assert picture_of(done) == undisturbed


def created(api: str, wish: dict[str, Any]) -> dict[str, str]:
    answer = httpx.post(api, json=wish, timeout=30)
    assert answer.status_code == 201, answer.text
    links: dict[str, str] = answer.json()["urls"]
    return links


def picture_of(done: dict[str, Any]) -> bytes:
    assert done["status"] == "succeeded", done["error"]
    return httpx.get(done["outputs"][0]["url"]).content


def kill_engine(server_pid: int) -> None:
    """SIGKILL to the process that holds the model: the largest child."""
    children = psutil.Process(server_pid).children(recursive=True)
    engine = max(children, key=lambda child: child.memory_info().rss)
    os.kill(engine.pid, signal.SIGKILL)
