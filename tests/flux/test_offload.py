"""Weights that visit the device: same results, back home afterwards, everything on the device."""

from pathlib import Path

import torch

from fluxserve.flux.encoders import ClipText, T5Encoder
from fluxserve.flux.offload import stream
from fluxserve.flux.quantize import Fp8Linear
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
