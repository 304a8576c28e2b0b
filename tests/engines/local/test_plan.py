"""At which size, from which references, in how many rows an order is made; what is refused."""

from dataclasses import replace

import pytest

from fluxserve.core.errors import EngineError
from fluxserve.core.sizes import KONTEXT_SIZES, Size
from fluxserve.engines.local.cost import Shape
from fluxserve.engines.local.plan import SIDE_MAX, plan
from fluxserve.engines.local.wire import Order
from fluxserve.flux import folder
from fluxserve.flux.spec import FLUX_DEV, FLUX_KONTEXT_DEV, Guidance
from tests.engines.local.test_wire import ORDER

EMBEDDED = folder.inspect(folder.embedded_folder())
EDIT = replace(ORDER, sizes=((640, 480),), margins=None, loras=())
TEXT = replace(EDIT, task="text_to_image", sizes=())


def test_a_kontext_edit_reads_its_picture_at_the_preferred_size() -> None:
    found = plan(FLUX_KONTEXT_DEV, EDIT)
    assert (found.width, found.height) == (1024, 768)
    assert found.references == ((1184, 880),)
    tokens = 512 + 64 * 48 + 74 * 55
    assert found.shape == Shape(tokens, tokens)
    assert found.steps == (found.shape,) * 28
    assert found.notes == ()


@pytest.mark.parametrize("size", [*KONTEXT_SIZES, Size(300, 300), Size(4000, 100), Size(1, 1)])
def test_the_preferred_size_has_the_nearest_ratio(size: Size) -> None:
    (found,) = plan(FLUX_KONTEXT_DEV, replace(EDIT, sizes=((size.width, size.height),))).references
    misses = [abs(w / h - size.ratio) for w, h in FLUX_KONTEXT_DEV.reference_sizes]
    assert abs(found[0] / found[1] - size.ratio) == min(misses)
    if size in KONTEXT_SIZES:
        assert found == (size.width, size.height)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (1536, 1536), (1000, 1001), (17, 16)])
def test_any_size_is_made_in_whole_tokens_and_brought_to_what_was_asked(
    width: int, height: int
) -> None:
    found = plan(FLUX_DEV, replace(TEXT, width=width, height=height))
    assert (found.out_width, found.out_height) == (width, height)
    assert (found.width, found.height) == (width // 16 * 16, height // 16 * 16)
    assert bool(found.notes) == bool(width % 16 or height % 16)


def test_four_pictures_are_all_read() -> None:
    found = plan(FLUX_KONTEXT_DEV, replace(EDIT, sizes=((640, 480),) * 4))
    assert len(found.references) == 4


def test_the_small_model_works_at_its_own_size_and_says_so() -> None:
    found = plan(EMBEDDED, TEXT)
    side = EMBEDDED.native_size
    assert (found.width, found.height) == (side, side)
    assert "is enlarged to 1024 x 768 px" in found.notes[-1]


def test_the_small_model_keeps_its_own_guidance_when_it_stands_in_for_another() -> None:
    own = plan(EMBEDDED, replace(TEXT, model="fluxserve/embedded", guidance=3.0))
    stand_in = plan(EMBEDDED, replace(TEXT, guidance=30.0))
    assert own.guidance == 3.0
    assert stand_in.guidance == EMBEDDED.guidance_scale
    assert "Guidance 30 is meant for" in stand_in.notes[0]


def test_true_guidance_doubles_the_rows_and_not_the_keys() -> None:
    assert EMBEDDED.guidance is Guidance.TRUE_CFG
    twice = plan(EMBEDDED, replace(TEXT, model="fluxserve/embedded", guidance=2.0)).shape
    once = plan(EMBEDDED, replace(TEXT, model="fluxserve/embedded", guidance=1.0)).shape
    assert twice == Shape(2 * once.rows, once.keys)


@pytest.mark.parametrize(("strength", "first"), [(1.0, 0), (0.5, 14), (0.0, 27), (0.01, 27)])
def test_strength_leaves_out_the_first_steps_but_never_all(strength: float, first: int) -> None:
    found = plan(FLUX_DEV, replace(EDIT, task="image_to_image", strength=strength))
    assert found.first_step == first
    assert found.references == ()
    assert len(found.steps) == 28 - first


def test_a_grown_canvas_is_as_large_as_its_margins_say() -> None:
    found = plan(FLUX_KONTEXT_DEV, replace(EDIT, task="expand", margins=(10, 20, 30, 40)))
    assert (found.out_width, found.out_height) == (640 + 70, 480 + 30)


REFUSALS: dict[str, tuple[Order, str]] = {
    "no picture": (replace(EDIT, sizes=()), "an input image is needed"),
    "five pictures": (replace(EDIT, sizes=((9, 9),) * 5), "images: at most 4, not 5"),
    "no mask": (replace(EDIT, task="fill"), "mask: needed"),
    "no margins": (replace(EDIT, task="expand"), "margins: needed"),
    "no steps": (replace(TEXT, num_steps=0), "num_steps: at least 1, not 0"),
    "too wide": (replace(TEXT, width=SIDE_MAX + 1), f"width: 1 to {SIDE_MAX} px"),
    "no height": (replace(TEXT, height=0), f"height: 1 to {SIDE_MAX} px, not 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_made_is_refused_with_the_reason(name: str) -> None:
    order, message = REFUSALS[name]
    with pytest.raises(EngineError, match=message):
        plan(FLUX_KONTEXT_DEV, order)


def test_a_model_that_cannot_read_pictures_says_so() -> None:
    with pytest.raises(EngineError, match="cannot read input images"):
        plan(FLUX_DEV, EDIT)


def test_an_edit_that_reuses_its_reference_runs_only_text_and_picture_in_between() -> None:
    found = plan(FLUX_KONTEXT_DEV, replace(EDIT, approximations=("ref_kv",)))
    tokens, reads = 512 + 64 * 48 + 74 * 55, 74 * 55
    full, reused = Shape(tokens, tokens), Shape(tokens - reads, tokens)
    assert found.steps == (full, reused) * 14
    assert (found.approximations, found.calls_reusing) == (("ref_kv",), 14)


def test_skipping_and_reusing_share_the_computed_steps() -> None:
    found = plan(FLUX_KONTEXT_DEV, replace(EDIT, approximations=("skip", "ref_kv")))
    calls = [shape for shape in found.steps if shape.rows]
    assert [shape == found.shape for shape in calls] == [True, False] * 6 + [True]
    assert (found.calls_reusing, len(found.steps)) == (6, 28)


@pytest.mark.parametrize(
    ("order", "used"),
    [
        (replace(TEXT, num_steps=28), ("skip",)),
        (replace(EDIT, num_steps=7), ("ref_kv",)),
        (replace(EDIT, num_steps=1), ()),
        (replace(EDIT, task="image_to_image", num_steps=28, strength=0.2), ()),
    ],
)
def test_an_approximation_is_named_only_where_it_does_something(
    order: Order, used: tuple[str, ...]
) -> None:
    found = plan(FLUX_KONTEXT_DEV, replace(order, approximations=("skip", "ref_kv")))
    assert found.approximations == used
