"""The shipped model through diffusers' own pipelines: the evaluation's short form, without data."""

from pathlib import Path

import pytest
import torch

from training import measures, words
from training.effects import EFFECTS
from training.export import BYTES_MAX, EMBEDDED, size_of
from training.painter import Painter


@pytest.fixture(scope="module")
def painter() -> Painter:
    torch.set_num_threads(1)  # two threads spin on a busy machine
    return Painter(EMBEDDED)


@pytest.fixture(scope="module")
def picture(painter: Painter) -> torch.Tensor:
    """A picture nobody drew before: soft colours with a disc on them, (1, 3, H, W) in 0 to 1."""
    height, width = painter.size
    noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    soft = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    disc = ((rows**2 + (columns - 0.3) ** 2) < 0.2).float()
    color = torch.tensor([0.86, 0.2, 0.3])[:, None, None]
    return soft * (1 - disc) + color * disc


def test_the_checkpoint_fits_in_its_25_megabytes() -> None:
    assert size_of(EMBEDDED / "checkpoint") <= BYTES_MAX


def test_every_source_is_named_in_the_notice() -> None:
    notice = (EMBEDDED / "NOTICE").read_text("utf-8")
    assert "fonts-noto-color-emoji" in notice


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(painter: Painter) -> None:
    first, again, other = (painter.text(["a red apple"], seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_background_has_the_colour_asked_for(painter: Painter) -> None:
    asked = ["red", "green", "blue", "yellow", "purple", "white"]
    images = painter.text([f"a star on a {color} background" for color in asked])
    references = torch.tensor(list(words.COLORS.values())) / 255
    corners = [torch.cat([x[:, :6, :6], x[:, :6, -6:]], 1).mean((1, 2)) for x in images]
    got = [measures.nearest_color(corner, references) for corner in corners]
    assert sum(a == b for a, b in zip(got, asked, strict=True)) >= 5


def test_grayscale_leaves_no_colour(painter: Painter, picture: torch.Tensor) -> None:
    result = painter.edit(picture, ["make it grayscale"])[0]
    assert measures.channel_spread(result) <= measures.SPREAD_MAX
    assert measures.correlation(result, picture[0]) >= 0.8


@pytest.mark.parametrize("kind", ["sepia", "invert", "dark", "bright", "hflip"])
def test_an_edit_comes_nearer_to_the_exact_one(
    kind: str, painter: Painter, picture: torch.Tensor
) -> None:
    result = painter.edit(picture, [words.EFFECT_PHRASES[kind][0]])[0]
    target = EFFECTS[kind](picture)[0]
    assert measures.psnr(result, target) >= measures.psnr(picture[0], target) + 3


def test_the_autoencoder_keeps_a_soft_picture(painter: Painter, picture: torch.Tensor) -> None:
    assert measures.psnr(painter.through_vae(picture)[0], picture[0]) >= 28


def test_the_preview_shows_what_the_latents_hold(painter: Painter, picture: torch.Tensor) -> None:
    how = painter.defaults["preview"]
    with torch.no_grad():
        latents = painter.kontext.vae.encode(picture * 2 - 1).latent_dist.mode()
    rgb = latents[0].permute(1, 2, 0) @ torch.tensor(how["factors"]) + torch.tensor(how["bias"])
    want = torch.nn.functional.avg_pool2d(picture * 2 - 1, 8)[0].permute(1, 2, 0)
    assert (rgb - want).abs().max() < 0.05


def test_the_defaults_name_an_existing_checkpoint(painter: Painter) -> None:
    assert (EMBEDDED / Path(painter.defaults["checkpoint"]) / "model_index.json").exists()
