"""The model in the package, for tests that compute with it."""

from collections.abc import Iterator

import pytest
import torch

from fluxserve.flux import weights
from fluxserve.flux.folder import embedded_folder
from fluxserve.flux.weights import Model


@pytest.fixture
def calm() -> Iterator[None]:
    """One thread: the machine may be shared, and waiting threads spin."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Model:
    return weights.load(embedded_folder(), device="cpu", dtype="float32")
