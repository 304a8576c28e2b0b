"""Random tiny models, ours and diffusers' with the same weights, and the model of the package."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from fluxserve.flux import folder, packing, weights
from fluxserve.flux.modules import FluxTransformer, placements
from fluxserve.flux.packed import Row
from fluxserve.flux.prepare import prepare
from fluxserve.flux.spec import TransformerSpec


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    """One thread: the machine may be shared, and waiting threads spin."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to a transformer, in plain tensors."""

    picture: Tensor
    reference: Tensor | None
    text: Tensor
    pooled: Tensor
    positions: Tensor  # text, picture, references
    sigma: float
    guidance: float | None


def ask(
    spec: TransformerSpec,
    size: tuple[int, int],
    *,
    text: int,
    references: Sequence[tuple[int, int]] = (),
    sigma: float = 0.5,
    guidance: float = 3.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Asked:
    """A request of random numbers; sizes count tokens, (height, width)."""
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance).to(dtype)

    rows = sum(height * width for height, width in references)
    return Asked(
        picture=draw(size[0] * size[1], spec.in_channels),
        reference=draw(rows, spec.in_channels) if rows else None,
        text=draw(text, spec.joint_attention_dim),
        pooled=draw(spec.pooled_projection_dim),
        positions=torch.cat(
            [
                packing.text_positions(text),
                packing.grid_positions(*size),
                packing.reference_positions(references),
            ]
        ),
        sigma=sigma,
        guidance=guidance if spec.guidance_embeds else None,
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """The same random weights, in diffusers' model and in ours."""

    theirs: FluxTransformer2DModel
    ours: FluxTransformer

    def expected(self, asked: Asked) -> Tensor:
        """What diffusers makes of one request alone."""
        picture, length = asked.picture, len(asked.text)
        rows = picture if asked.reference is None else torch.cat([picture, asked.reference])
        level = (torch.tensor([asked.sigma]) * 1000).to(picture.dtype) / 1000
        (found,) = self.theirs(
            hidden_states=rows[None],
            encoder_hidden_states=asked.text[None],
            pooled_projections=asked.pooled[None],
            timestep=level,
            txt_ids=asked.positions[:length],
            img_ids=asked.positions[length:],
            guidance=None if asked.guidance is None else torch.tensor([asked.guidance]),
            return_dict=False,
        )
        result: Tensor = found[0, : len(picture)]
        return result

    def row(self, asked: Asked) -> Row:
        prepared = prepare(
            self.ours,
            text=asked.text,
            pooled=asked.pooled,
            positions=asked.positions,
            sigmas=torch.tensor([asked.sigma]),
            guidance=asked.guidance,
            reference=asked.reference,
        )
        return Row(prepared, asked.picture, 0)


def pair(spec: TransformerSpec, dtype: torch.dtype = torch.float32) -> Pair:
    """Random weights, also where a fresh model has zeros and ones."""
    torch.manual_seed(1)
    theirs = FluxTransformer2DModel(**asdict(spec)).to(torch.float32)
    for name, parameter in theirs.named_parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(1.0 if "norm_" in name else 0.0, 0.2)
    theirs.to(dtype).eval().requires_grad_(False)
    ours = FluxTransformer(spec).to(dtype).requires_grad_(False)
    places, parameters = placements(spec), dict(ours.named_parameters())
    for name, tensor in theirs.state_dict().items():
        place = places[name]
        parameters[place.parameter][place.start : place.end].copy_(tensor)
    return Pair(theirs, ours)


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    return folder.embedded_folder()


@pytest.fixture(scope="session")
def embedded(embedded_folder: Path) -> weights.Model:
    return weights.load(embedded_folder, device="cpu", dtype="float32")
