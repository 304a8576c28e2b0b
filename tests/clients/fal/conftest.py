"""A real server for real fal clients: over https, because they speak nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.clients.cases import Served, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), tls=True) as served:
        yield served


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of 600 x 400."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.linear_gradient("L").resize((600, 400)).convert("RGB").save(path, "JPEG")
    return path
