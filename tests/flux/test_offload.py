"""Weights that visit the device: same results, back home afterwards, everything on the device."""

import weakref
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fluxserve.flux.encoders import ClipText, T5Encoder
from fluxserve.flux.offload import stream
from fluxserve.flux.quantize import Fp8Linear, quantize
from fluxserve.flux.skips import Linears
from fluxserve.flux.spec import ClipSpec, T5Spec
from fluxserve.flux.weights import Model, load

CLIP = ClipSpec(
    vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    eos_token_id=1,
)  # fmt: skip
T5 = T5Spec(vocab_size=99, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)


def test_streamed_text_encoders_give_what_loaded_ones_do(
    embedded: Model, embedded_folder: Path
) -> None:
    streamed = load(embedded_folder, device="cpu", dtype="float32", streams_text=True)
    for prompt in ("a red circle", ""):
        whole, visiting = embedded.text.encode(prompt), streamed.text.encode(prompt)
        assert torch.equal(whole.tokens, visiting.tokens)
        assert torch.equal(whole.pooled, visiting.pooled)


def test_every_layer_runs_on_the_device_and_goes_home() -> None:
    # A tensor of the meta device and one of the CPU do not mix: what stayed behind would raise.
    device, ids = torch.device("meta"), torch.tensor([[5, 7, 1]])
    for module in (ClipText(CLIP), T5Encoder(T5)):
        module.requires_grad_(False)
        before = {name: tensor.data_ptr() for name, tensor in module.named_parameters()}
        stream(module, device)
        assert module(ids).device == device
        assert module(ids).device == device
        after = {name: tensor.data_ptr() for name, tensor in module.named_parameters()}
        assert after == before


def test_a_model_is_loaded_in_8_bits_at_once(embedded_folder: Path) -> None:
    model = load(embedded_folder, device="cpu", dtype="float32", linears=Linears.FP8)
    kinds = [type(module) for module in model.transformer.modules()]
    assert kinds.count(Fp8Linear) == 2 * 8 + 6 * 2


def test_while_it_is_read_a_model_is_never_exact_as_a_whole(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact: list[weakref.ref[Tensor]] = []
    there: list[int] = []

    class Seen(Fp8Linear):
        def __init__(self, layer: nn.Linear) -> None:
            there.append(sum(weight() is not None for weight in exact))
            exact.append(weakref.ref(layer.weight))
            super().__init__(layer)

    monkeypatch.setattr("fluxserve.flux.quantize.Fp8Linear", Seen)
    load(embedded_folder, device="cpu", dtype="float32", linears=Linears.FP8)
    assert len(there) == 2 * 8 + 6 * 2
    assert max(there) <= 1  # of those that were complete before


def test_in_8_bits_while_read_equals_in_8_bits_afterwards(
    embedded: Model, embedded_folder: Path
) -> None:
    read = load(embedded_folder, device="cpu", dtype="float32", linears=Linears.FP8)
    later = quantize(deepcopy(embedded.transformer))
    found, expected = read.transformer.state_dict(), later.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].float(), tensor.float()), name
