"""A real server for real OpenAI clients, over http and over https."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.clients.cases import Served, serving


@pytest.fixture(scope="session", params=["http", "https"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    mapped = {"FLUXSERVE_OPENAI__DEFAULT_MODEL": "simulator"}
    with serving(folder, tls=request.param == "https", **mapped) as served:
        yield served


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PNG of 320 x 256, with a mask of the same size beside it that is clear on its left."""
    folder = tmp_path_factory.mktemp("photo")
    Image.linear_gradient("L").resize((320, 256)).convert("RGB").save(folder / "photo.png")
    mask = Image.new("RGBA", (320, 256), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 160, 256))
    mask.save(folder / "mask.png")
    return folder / "photo.png"
