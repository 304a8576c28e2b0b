"""Text encoders, autoencoder, noise levels and layout against diffusers and transformers."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from fluxserve.flux import packing, schedule
from fluxserve.flux.autoencoder import Autoencoder, from_pixels, to_pixels
from fluxserve.flux.cache import Cache
from fluxserve.flux.encoders import ClipText, T5Encoder
from fluxserve.flux.skips import skip_map
from fluxserve.flux.spec import FLUX_KONTEXT_DEV, FLUX_SCHNELL, ScheduleSpec, tiny
from fluxserve.flux.text import load_tokenizer
from fluxserve.flux.weights import Model


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eos", [2, 999])
def test_the_clip_encoder_equals_the_reference(eos: int) -> None:
    spec = tiny().clip
    config = {**asdict(spec), "eos_token_id": eos, "pad_token_id": 0, "bos_token_id": 1}
    theirs = CLIPTextModel(CLIPTextConfig(**config)).eval()
    ours = ClipText(type(spec).from_config(config))
    names = {n.removeprefix("text_model."): p for n, p in theirs.state_dict().items()}
    ours.load_state_dict({n: p for n, p in names.items() if not n.endswith("position_ids")})
    ids = torch.randint(3, 998, (2, 20))
    ids[:, 12:] = 999
    assert_close(ours(ids), theirs(ids).pooler_output)


def test_the_t5_encoder_equals_the_reference() -> None:
    spec = tiny().t5
    theirs = T5EncoderModel(T5Config(**asdict(spec), dropout_rate=0.0)).eval()
    ours = T5Encoder(spec)
    names = {n: p for n, p in theirs.state_dict().items() if n != "encoder.embed_tokens.weight"}
    ours.load_state_dict(names)
    ids = torch.randint(0, 999, (2, 150))
    assert_close(ours(ids), theirs(ids)[0])


@pytest.mark.parametrize("attention", [True, False])
def test_the_autoencoder_equals_the_reference(attention: bool) -> None:
    config = {**asdict(tiny().autoencoder), "mid_block_add_attention": attention}
    theirs = AutoencoderKL(
        **config,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ).eval()
    ours = Autoencoder(type(tiny().autoencoder).from_config(config))
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.rand(3, 32, 48) * 2 - 1
    mode = theirs.encode(pixels[None]).latent_dist.mode()[0]
    scaled = (mode - ours.spec.shift_factor) * ours.spec.scaling_factor
    assert_close(ours.encode(pixels), scaled)
    assert_close(ours.decode(scaled), theirs.decode(mode[None]).sample[0])


def test_prompts_of_the_package_model_are_read_as_the_reference_reads_them(
    embedded: Model, embedded_folder: Path
) -> None:
    theirs = FluxKontextPipeline.from_pretrained(
        embedded_folder, transformer=None, vae=None, dtype=torch.float32
    )
    for prompt in ("a red apple", "", "A Taxi, on  a YELLOW background!", "zebra " * 40, "日本 ☂"):
        tokens, pooled, _ = theirs.encode_prompt(
            prompt, device=torch.device("cpu"), max_sequence_length=embedded.spec.text_tokens
        )
        found = embedded.text.encode(prompt)
        assert_close(found.tokens, tokens[0])
        assert_close(found.pooled, pooled[0])


def test_a_prompt_seen_before_comes_from_memory(embedded: Model) -> None:
    before = embedded.text.cache_stats
    first = embedded.text.encode("a prompt nobody else uses")
    assert embedded.text.encode("a prompt nobody else uses") is first
    after = embedded.text.cache_stats
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 1)


def test_a_cache_forgets_the_oldest_when_it_is_full() -> None:
    cache: Cache[str] = Cache(10, len)
    for key in "aba":
        assert cache.get(key, partial(str.__mul__, key, 4)) == key * 4
    cache.get("c", lambda: "cccc")
    assert cache.stats.size_bytes == 8
    cache.get("b", lambda: "made again")
    assert (cache.stats.hits, cache.stats.misses) == (1, 4)


def test_clips_older_tokenizer_files_give_the_same_ids(
    embedded_folder: Path, tmp_path: Path
) -> None:
    source = embedded_folder / "tokenizer"
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "tokenizer_config.json").write_bytes(
        (source / "tokenizer_config.json").read_bytes()
    )
    ours, theirs = load_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(str(source))
    for text in ("a red apple", "It's 3 o'clock:\tGO!", "<|endoftext|> ünï", ""):
        expected = theirs(text, padding="max_length", max_length=24, truncation=True).input_ids
        assert ours.encode(text).ids == expected


@pytest.mark.parametrize("spec", [FLUX_KONTEXT_DEV.schedule, FLUX_SCHNELL.schedule], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
@pytest.mark.parametrize("tokens", [16, 256, 4096, 10000])
def test_noise_levels_equal_the_reference(spec: ScheduleSpec, steps: int, tokens: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**asdict(spec))
    even = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).numpy()
    mu = calculate_shift(tokens, spec.base_image_seq_len, spec.max_image_seq_len)
    theirs.set_timesteps(sigmas=even, mu=mu)
    torch.testing.assert_close(
        schedule.sigmas(steps, tokens, spec), theirs.sigmas, rtol=0, atol=1.2e-7
    )


def test_a_fast_run_computes_the_first_and_last_three_and_one_in_three_between() -> None:
    found = "".join(str(int(step)) for step in skip_map(28))
    assert found == "1110100100100100100100100111"
    assert skip_map(6) == (True,) * 6


def test_extrapolation_is_exact_on_a_straight_line() -> None:
    start, slope = torch.randn(5), torch.randn(5)
    one, two, three = (torch.tensor(sigma) for sigma in (0.9, 0.7, 0.4))
    found = schedule.extrapolated(start + two * slope, start + one * slope, two, one, three)
    assert_close(found, start + three * slope)


def test_a_step_equals_the_reference() -> None:
    spec = FLUX_KONTEXT_DEV.schedule
    theirs = FlowMatchEulerDiscreteScheduler(**asdict(spec))
    theirs.set_timesteps(sigmas=[1.0, 0.5], mu=0.8)
    latents, velocity = (torch.randn(1, 6, 4, dtype=torch.bfloat16) for _ in range(2))
    expected = theirs.step(velocity, theirs.timesteps[0], latents, return_dict=False)[0]
    found = schedule.euler(latents, velocity, theirs.sigmas[0], theirs.sigmas[1])
    assert torch.equal(found, expected)


def test_tokens_and_positions_equal_the_reference() -> None:
    latents = torch.randn(16, 6, 10)
    theirs = FluxKontextPipeline._pack_latents(latents[None], 1, 16, 6, 10)[0]
    assert torch.equal(packing.pack(latents), theirs)
    assert torch.equal(packing.unpack(theirs, 3, 5), latents)
    ids = FluxKontextPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(packing.grid_positions(3, 5), ids)
    ids[..., 0] = 1
    assert torch.equal(packing.reference_positions([(3, 5)]), ids)


def test_no_two_reference_tokens_share_a_place() -> None:
    positions = packing.reference_positions([(4, 6), (6, 4), (3, 3), (8, 2)])
    assert len({tuple(place) for place in positions.tolist()}) == len(positions)
    assert set(positions[:, 0].tolist()) == {1.0}


def test_pixels_survive_the_way_to_minus_one_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).expand(16, 16, 3)
    assert torch.equal(to_pixels(from_pixels(pixels)), pixels)
