"""The pieces of training, each against its definition; no data is fetched."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from training import config, measures, words
from training.effects import EFFECTS, MOVES, differences, luminance
from training.export import preview_factors
from training.lessons import OWN_LEVEL_MIN, lesson, levels, one_answer, own_rows
from training.model import TOKEN, pack, positions, sigmas, unpack, widened
from training.optimizer import Optimizer, orthogonalize
from training.scenes import Batch, Example
from training.styles import DRAWN_FROM, STYLES, tint
from training.vae import (
    LATENTS,
    decode_linear,
    encode,
    extend_matrix,
    install_encoder,
    new_vae,
    read_matrix,
)

CONFIGS = Path("training/configs")


@pytest.fixture
def pictures() -> torch.Tensor:
    """Four soft, colourful pictures, (4, 3, 128, 128) in 0 to 1."""
    noise = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    soft = torch.nn.functional.interpolate(noise, (128, 128), mode="bicubic")
    return soft.clamp(0, 1)


@pytest.fixture
def matrix() -> torch.Tensor:
    """An orthonormal encoder that looks only at what the factored form can keep."""
    generator = torch.Generator().manual_seed(2)
    first = torch.linalg.qr(torch.randn(48, 32, generator=generator))[0]
    second = torch.linalg.qr(torch.randn(4 * 32, LATENTS, generator=generator))[0]
    # 2 x 2 of 4 x 4 blocks: (colour, y, x) of each quarter, then the quarter.
    quarter = torch.einsum("pk,kql->pql", first, second.view(32, 4, LATENTS))
    cube = quarter.view(3, 2, 2, 2, 2, 2, 2, LATENTS)  # colour, yc, xc, yb, xb, ya, xa, latent
    return cube.permute(0, 5, 3, 1, 6, 4, 2, 7).reshape(192, LATENTS)


def test_unpacking_tokens_gives_back_the_latents() -> None:
    latents = torch.randn(2, LATENTS, 12, 20)
    assert torch.equal(unpack(pack(latents), (96, 160)), latents)


def test_positions_count_rows_then_columns_and_name_the_picture() -> None:
    where = positions((32, 48), 1)
    assert where.tolist() == [[1, y, x] for y in range(2) for x in range(3)]


@pytest.mark.parametrize("tokens", [16, 64, 256])
def test_noise_levels_are_those_of_the_pipelines(tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=[1 - i / 8 for i in range(8)], mu=mu)
    assert sigmas(8, tokens) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-5)


def test_the_autoencoder_computes_the_linear_encoder_exactly(
    pictures: torch.Tensor, matrix: torch.Tensor
) -> None:
    vae = new_vae()
    install_encoder(vae, matrix)
    with torch.no_grad():
        got = vae.encode(pictures * 2 - 1).latent_dist.mode()
    assert torch.allclose(got, encode(pictures * 2 - 1, matrix), atol=2e-3)


def test_the_encoder_matrix_can_be_read_back(matrix: torch.Tensor) -> None:
    vae = new_vae()
    install_encoder(vae, matrix)
    assert torch.allclose(read_matrix(vae), matrix, atol=2e-3)


def test_linear_decoding_keeps_what_the_encoder_kept(
    pictures: torch.Tensor, matrix: torch.Tensor
) -> None:
    latents = encode(pictures, matrix)
    again = encode(decode_linear(latents, matrix), matrix)
    assert torch.allclose(latents, again, atol=1e-4)


def test_an_old_encoder_keeps_its_channels_when_it_gets_more(pictures: torch.Tensor) -> None:
    old = torch.linalg.qr(torch.randn(192, 16))[0] * 0.5
    wide = extend_matrix(pictures * 2 - 1, old)
    assert wide.shape == (192, LATENTS)
    assert torch.equal(wide[:, :16], old)
    assert (wide[:, 16:].T @ old).abs().max() < 1e-4
    error = (decode_linear(encode(pictures, wide), wide) - pictures).pow(2).mean()
    assert error < (decode_linear(encode(pictures, old), old) - pictures).pow(2).mean()


def test_a_wider_transformer_draws_what_the_narrow_one_drew() -> None:
    torch.manual_seed(0)
    shape = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    shape |= {"num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    narrow = FluxTransformer2DModel(**shape, in_channels=64, axes_dims_rope=(4, 6, 6))
    wide = widened(narrow)
    assert wide.config.in_channels == TOKEN
    tokens = torch.randn(1, 4, TOKEN)
    rest = {
        "timestep": torch.tensor([0.5]),
        "pooled_projections": torch.randn(1, 8),
        "encoder_hidden_states": torch.randn(1, 3, 8),
        "txt_ids": torch.zeros(3, 3),
        "img_ids": positions((32, 32), 0),
        "return_dict": False,
    }
    with torch.no_grad():
        before = narrow(tokens[..., :64], **rest)[0]
        after = wide(tokens, **rest)[0]
    assert torch.allclose(after[..., :64], before, atol=1e-5)
    assert after[..., 64:].abs().max() == 0


def test_the_preview_is_the_mean_colour_of_each_block(pictures: torch.Tensor) -> None:
    flat = torch.zeros(192, LATENTS)
    for channel in range(3):
        flat[channel * 64 : (channel + 1) * 64, channel] = 1 / 8
    factors = torch.tensor(preview_factors(flat))
    got = encode(pictures, flat).permute(0, 2, 3, 1) @ factors
    want = torch.nn.functional.avg_pool2d(pictures, 8).permute(0, 2, 3, 1)
    assert torch.allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("kind", EFFECTS)
def test_an_effect_keeps_shape_and_range(kind: str, pictures: torch.Tensor) -> None:
    result = EFFECTS[kind](pictures)
    assert result.shape == pictures.shape
    assert result.min() >= -1e-6
    assert result.max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", sorted(set(EFFECTS) - MOVES))
def test_a_local_effect_of_a_crop_is_the_crop_of_the_effect(
    kind: str, pictures: torch.Tensor
) -> None:
    inner = (..., slice(48, 80), slice(48, 80))
    whole = EFFECTS[kind](pictures)[inner]
    part = EFFECTS[kind](pictures[..., 16:112, 16:112])[..., 32:64, 32:64]
    assert torch.allclose(whole, part, atol=1e-5)


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    """Two discs with a shaded two-coloured body: premultiplied (2, 3, 128, 128), alpha."""
    y, x = torch.meshgrid(torch.arange(128) - 63.5, torch.arange(128) - 63.5, indexing="ij")
    alpha = torch.sigmoid(4 * (40 - (x**2 + y**2).sqrt())).expand(2, 1, 128, 128)
    shade = (0.7 - y / 200).expand(3, 128, 128)
    body = shade * torch.where(x > 0, 1.0, 0.5) * torch.tensor([1.0, 0.6, 0.3])[:, None, None]
    return body.clamp(0, 1) * alpha, alpha


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_restyled_thing_is_a_layer_that_covers_what_it_did(
    style: str, layer: tuple[torch.Tensor, torch.Tensor]
) -> None:
    colors, alpha = STYLES[style](*layer)
    assert colors.shape == layer[0].shape
    assert alpha.shape == layer[1].shape
    assert float(colors.min()) >= 0
    assert bool((colors <= alpha + 1e-5).all())
    assert bool((alpha >= layer[1] - 1e-5).all())
    assert float((colors - layer[0]).abs().mean()) > 0.005


def test_a_line_icon_is_black_at_its_edges_and_white_inside(
    layer: tuple[torch.Tensor, torch.Tensor],
) -> None:
    colors, _ = STYLES["line"](*layer)
    assert colors[0, :, 64, 40].min() > 0.95  # inside
    assert colors[0, :, 64, 22:26].amax(0).min() < 0.2  # its outline
    assert colors[0, :, 64, 64].max() < 0.5  # between its colours


def test_a_flat_thing_has_few_colours_and_a_solid_one_is_lit_from_the_upper_left(
    layer: tuple[torch.Tensor, torch.Tensor],
) -> None:
    flat, _ = STYLES["flat"](*layer)
    inner = [picture[:1, :, 44:84, 44:84] for picture in (layer[0], flat)]
    even = [float((differences(picture).sum(1) < 1e-3).float().mean()) for picture in inner]
    assert even[1] > 0.7 > 0.1 > even[0]
    solid, alpha = STYLES["3d"](torch.full_like(layer[0], 0.5) * layer[1], layer[1])
    assert solid[0, 0, 40, 40] > 0.6 > 0.4 > solid[0, 0, 88, 88]
    assert alpha[0, 0, 96, 96] > 0.2 > 0.01 > alpha[0, 0, 31, 31]  # its shadow, on one side


@pytest.mark.parametrize("name", words.COLORS)
@pytest.mark.parametrize("light", [0.15, 0.5, 0.95])
def test_a_tinted_thing_is_of_that_colour_however_light_it_was_drawn(
    name: str, light: float, layer: tuple[torch.Tensor, torch.Tensor]
) -> None:
    colors = torch.tensor(list(words.COLORS.values())) / 255
    wanted = colors[words.COLOR_NAMES.index(name)][:, None, None].expand(2, 3, 1, 1)
    shade = luminance(layer[0]) * light
    drawn = tint(shade, layer[1], wanted)
    inside = (layer[1][0] > 0.9).float()
    assert measures.nearest_color(measures.region_color(drawn[0], inside), colors) == name
    assert drawn[0, :, 64, 90].mean() >= drawn[0, :, 64, 40].mean()  # lighter where it was


def test_a_thing_of_one_pixel_can_be_restyled() -> None:
    alpha = torch.zeros(1, 1, 128, 128)
    alpha[0, 0, 5, 5] = 1.0
    for restyle in STYLES.values():
        colors, _ = restyle(alpha.expand(1, 3, 128, 128) * 0.5, alpha)
        assert bool(colors.isfinite().all())


def test_every_style_has_phrases_and_drawings_to_start_from() -> None:
    assert set(words.STYLE_PHRASES) == set(STYLES) == set(DRAWN_FROM)
    assert all("noto" in drawn for drawn in DRAWN_FROM.values())  # every thing has that one


def test_every_effect_has_phrases() -> None:
    assert set(words.EFFECT_PHRASES) == set(EFFECTS)


@pytest.mark.parametrize("kind", EFFECTS)
def test_the_exact_edit_passes_its_measure_and_no_edit_fails(
    kind: str, pictures: torch.Tensor
) -> None:
    source, target = pictures[0], EFFECTS[kind](pictures)[0]
    assert measures.effect_is_right(kind, target, target, source, 40.0)
    assert not measures.effect_is_right(kind, source, target, source, 40.0)


def test_a_lesson_leads_to_the_target_from_wherever_it_starts() -> None:
    start, target, noise = torch.randn(3, 4, 16, TOKEN)
    level = torch.tensor([0.1, 0.4, 0.8, 1.0])[:, None, None]
    noisy, velocity = lesson(start, target, level, noise)
    assert torch.allclose(noisy - level * velocity, target, atol=1e-4)
    assert torch.allclose(lesson(target, target, level, noise)[1], noise - target)


def test_edits_with_one_answer_are_those_whose_source_says_it() -> None:
    assert one_answer(Example("poster"))
    assert one_answer(Example("recolor", color="red"))
    assert one_answer(Example("style", color="3d"))
    assert not one_answer(Example("replace"))
    assert not one_answer(Example("text"))


def test_only_a_share_of_the_edits_with_one_answer_start_from_a_guess() -> None:
    kinds = ["replace", "poster", "gray", "replace", "blur", "invert"]
    batch = Batch([""] * 6, [Example(kind) for kind in kinds], torch.zeros(6, 3, 16, 16))
    assert own_rows(batch, 0.5) == [1, 2]
    assert own_rows(batch, 0.0) == []


def test_guesses_are_mended_at_every_level_a_sampler_asks() -> None:
    rows = list(range(0, 2000, 2))
    drawn = levels(torch.Generator().manual_seed(3), 2000, 0.4, rows)
    assert float(drawn.min()) > 0
    assert float(drawn.max()) <= 1
    own = drawn[rows]
    assert float(own.min()) >= OWN_LEVEL_MIN
    thirds = torch.histc(own, 3, OWN_LEVEL_MIN, 1.0) / len(rows)
    assert float((thirds - 1 / 3).abs().max()) < 0.05


def test_objects_have_articles_unless_plural() -> None:
    assert words.phrase("apple", "red") == "a red apple"
    assert words.phrase("apple") == "an apple"
    assert words.phrase("grapes", "blue") == "blue grapes"


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    turned = orthogonalize(torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_the_optimizer_fits_a_linear_map() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    want = torch.randn(8, 8)
    optimizer = Optimizer([("blocks.0.weight", weight), ("bias", torch.nn.Parameter(want[0]))], 0)
    for step in range(200):
        weight.grad = weight.detach() - want
        optimizer.step(0.2 * (1 - step / 200))
    assert (weight - want).abs().max() < 0.1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_a_recorded_configuration_can_be_read(path: Path) -> None:
    run = config.read(path)
    assert run.name == path.stem
    assert {group.task for group in run.groups} <= {"text", "edit", "crop"}


def test_an_unknown_key_in_a_configuration_names_itself(tmp_path: Path) -> None:
    text = (CONFIGS / "cpu-128.json").read_text("utf-8").replace('"rate"', '"pace"')
    (tmp_path / "run.json").write_text(text, "utf-8")
    with pytest.raises(TypeError, match="pace"):
        config.read(tmp_path / "run.json")
