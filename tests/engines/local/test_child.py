"""What the engine process works out before it loads anything, and what it refuses."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve.engines.local import child, memory
from fluxserve.engines.local.child import Arguments
from fluxserve.flux import weights
from fluxserve.flux.folder import WeightsError, embedded_folder
from fluxserve.flux.quantize import TwinLinear

SAID = Arguments(
    fd=0,
    model=embedded_folder(),
    device="cpu",
    dtype="auto",
    fp8="auto",
    threads=1,
    spool=Path("unused"),
    rows_max=0,
    preview_steps=0,
    requests_max=4,
)


@pytest.fixture(autouse=True)
def _plans(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The small model is taken for a large one, which has to be planned for."""
    monkeypatch.setattr(child, "SMALL_BYTES", 0)
    caplog.set_level(logging.INFO)


def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> object:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(weights, "load", load)


@pytest.mark.parametrize(
    ("fp8", "words"), [("auto", "linears exact only"), ("on", "linears exact and in 8 bits")]
)
def test_the_plan_is_told_before_the_model_is_loaded_as_it_says(
    caplog: pytest.LogCaptureFixture, fp8: str, words: str
) -> None:
    model, spare_bytes = child._load(replace(SAID, fp8=fp8))
    assert words in caplog.text
    assert spare_bytes > 0
    kinds = {type(layer) for layer in model.transformer.modules()}
    assert (TwinLinear in kinds) == (fp8 == "on")


def test_a_model_without_room_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads_nothing(monkeypatch)
    monkeypatch.setattr(memory, "device_bytes", lambda device: 2**20)
    with pytest.raises(WeightsError, match=r"needs \d\.\d GiB on cpu, 0\.0 GiB are free"):
        child._load(SAID)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"device": "tpu"}, "device: cuda, cuda:N, mps or cpu, not 'tpu'"),
        ({"device": "cuda:0"}, "device: this machine has no usable cuda"),
        ({"dtype": "int4"}, "dtype: auto, float32, bfloat16, float16, not 'int4'"),
        ({"model": Path("nowhere")}, "nowhere: no such model folder"),
    ],
)
def test_what_cannot_run_here_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, object], words: str
) -> None:
    loads_nothing(monkeypatch)
    with pytest.raises(WeightsError, match=words):
        child._load(replace(SAID, **said))  # type: ignore[arg-type]
