"""Cards and the completion of requests: defaults, limits, sizes, seeds, routes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import InvalidRequest, Unavailable, UnknownModel
from fluxserve.core.request import (
    MATCH_INPUT,
    BlobRef,
    ImageInput,
    ImageParams,
    LoraRef,
    Margins,
    Task,
)
from fluxserve.core.routing import Route, Router
from fluxserve.core.sizes import Size

CATALOG = Catalog(CARDS, lambda: 4711)
KONTEXT = "black-forest-labs/flux-kontext-dev"


def picture(width: int, height: int) -> ImageInput:
    return ImageInput(
        blob=BlobRef(key="k", mime="image/png", size_bytes=1, width=width, height=height)
    )


def params(**more: object) -> ImageParams:
    words: dict[str, object] = {"model": KONTEXT, "prompt": "a fox", **more}
    return ImageParams(**words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "black-forest-labs/flux-kontext-dev",
        "flux-kontext-pro",
        "wavespeed-ai/flux-kontext-dev",
        "flux-pro",
        "fal-ai/flux/dev",
        "FLUX-DEV",
        "fluxserve/embedded",
        "fluxserve/simulator",
    ],
)
def test_every_public_name_leads_to_a_card(name: str) -> None:
    assert name.lower() in {known.lower() for known in CATALOG.card(name).names}


def test_an_unknown_name_is_refused_by_name() -> None:
    with pytest.raises(UnknownModel, match="nope"):
        CATALOG.card("nope")


def test_what_was_not_said_comes_from_the_card_and_the_seed_is_drawn() -> None:
    request = CATALOG.complete(params())
    assert (request.num_steps, request.guidance, request.seed) == (28, 2.5, 4711)
    assert request.task is Task.TEXT_TO_IMAGE
    assert (request.width, request.height) == (1024, 1024)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_seed_that_was_said_is_kept(seed: int) -> None:
    assert CATALOG.complete(params(seed=seed)).seed == seed


def test_a_large_seed_is_reduced_and_a_negative_one_drawn() -> None:
    assert CATALOG.complete(params(seed=2**32 + 5)).seed == 5
    assert CATALOG.complete(params(seed=-1)).seed == 4711


@pytest.mark.parametrize(
    ("ratio", "size"),
    [("16:9", Size(1328, 800)), ("1:1", Size(1024, 1024)), ("9:21", Size(672, 1568))],
)
def test_kontext_ratios_have_the_sizes_of_its_open_implementation(ratio: str, size: Size) -> None:
    request = CATALOG.complete(params(aspect_ratio=ratio))
    assert Size(request.width, request.height) == size


@pytest.mark.parametrize("ratio", [None, MATCH_INPUT])
def test_an_edit_takes_the_preferred_size_nearest_to_its_picture(ratio: str | None) -> None:
    request = CATALOG.complete(params(images=(picture(3000, 2000),), aspect_ratio=ratio))
    assert request.task is Task.EDIT
    assert (request.width, request.height) == (1248, 832)


def test_the_size_of_a_picture_behind_a_url_is_settled_when_it_is_there() -> None:
    request = CATALOG.complete(params(images=(ImageInput(url="https://x.example/a.png"),)))
    assert (request.width, request.height) == (0, 0)
    settled = CATALOG.settle(request, Size(100, 400))
    assert settled.height > settled.width
    assert CATALOG.settle(settled, Size(400, 100)) == settled


def test_a_named_ratio_goes_before_width_and_height() -> None:
    request = CATALOG.complete(params(aspect_ratio="1:1", width=512, height=256))
    assert (request.width, request.height) == (1024, 1024)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 101}, "num_steps"),
        ({"guidance": -0.5}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"width": 10}, "width"),
        ({"height": 9999}, "height"),
        ({"num_outputs": 5}, "num_outputs"),
        ({"output_quality": 101}, "output_quality"),
        ({"aspect_ratio": "5:1"}, "aspect_ratio"),
        ({"aspect_ratio": "wide"}, "aspect_ratio"),
        ({"images": (picture(9, 9),) * 5}, "images"),
        ({"mask": picture(9, 9)}, "mask"),
        ({"margins": Margins(top=5), "images": (picture(9, 9),)}, "margins"),
        ({"prompt": "x" * 40_000}, "prompt"),
        ({"loras": (LoraRef(path="x" * 10_000),)}, "loras"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_field(more: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CATALOG.complete(params(**more))
    assert caught.value.field == field


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        CATALOG.complete(params(prompt="", num_steps=0))
    assert {problem.field for problem in caught.value.problems} == {"prompt", "num_steps"}


@settings(max_examples=200)
@given(
    st.sampled_from([card.id for card in CARDS if Task.TEXT_TO_IMAGE in card.tasks]),
    st.none() | st.integers(256, 2048),
    st.none() | st.integers(256, 2048),
    st.none() | st.sampled_from(["1:1", "16:9", "9:16", "1:4", "4:1", "341:192"]),
)
def test_every_size_is_on_the_grid_and_within_limits(
    model: str, width: int | None, height: int | None, ratio: str | None
) -> None:
    request = CATALOG.complete(params(model=model, width=width, height=height, aspect_ratio=ratio))
    limits = CATALOG.card(model).limits
    for side in (request.width, request.height):
        assert side % limits.multiple == 0
        assert limits.side[0] <= side <= limits.side[1]


def router(*routes: Route, able: frozenset[str] = frozenset("abc"), mark: float = 0.0) -> Router:
    return Router(routes, is_able=lambda name: name in able, draw=lambda: mark)


def test_the_highest_priority_serves_and_the_next_when_it_cannot() -> None:
    routes = (Route(model="*", engine="a", priority=1), Route(model="*", engine="b"))
    card = CATALOG.card(KONTEXT)
    assert router(*routes).choose(card) == "a"
    assert router(*routes, able=frozenset("b")).choose(card) == "b"
    assert router(*routes, able=frozenset()).choose(card) == "a"
    assert router(*routes).choose(card, but=("a",)) == "b"


def test_weights_share_a_priority() -> None:
    routes = (Route(model="*", engine="a", weight=1), Route(model="*", engine="b", weight=3))
    card = CATALOG.card(KONTEXT)
    chosen = [router(*routes, mark=mark / 8).choose(card) for mark in range(8)]
    assert chosen.count("a") == 2
    assert chosen.count("b") == 6


def test_a_card_that_nobody_serves_says_what_to_do() -> None:
    with pytest.raises(Unavailable, match=r"\[\[route\]\]"):
        router(Route(model="other", engine="a")).choose(CATALOG.card(KONTEXT))


def test_among_equal_priorities_the_cheaper_goes_first_and_weights_share_equal_prices() -> None:
    routes = [
        Route(model="*", engine="a", weight=9),
        Route(model="*", engine="b"),
        Route(model="*", engine="c"),
    ]
    card, request = CATALOG.card(KONTEXT), CATALOG.complete(params())

    def chosen(prices: dict[str, int], able: str = "abc") -> set[str]:
        def one(mark: float) -> str:
            found = Router(
                routes,
                is_able=lambda name: name in able,
                draw=lambda: mark,
                price=lambda engine, asked: prices.get(engine),
            )
            return found.choose(card, request)

        return {one(mark / 20) for mark in range(20)}

    assert chosen({"a": 40, "b": 25, "c": 50}) == {"b"}
    assert chosen({"a": 40, "b": 25, "c": 25}) == {"b", "c"}
    assert chosen({"a": 40, "b": 25, "c": 50}, able="ac") == {"a"}
    assert chosen({"a": 40, "b": 25}) == {"a", "b", "c"}  # one price is not known


def test_a_low_price_does_not_outdo_a_priority() -> None:
    routes = [Route(model="*", engine="a", priority=1), Route(model="*", engine="b")]
    prices = {"a": 100, "b": 1}
    found = Router(
        routes,
        is_able=lambda name: True,
        draw=lambda: 0.0,
        price=lambda engine, asked: prices[engine],
    )
    assert found.choose(CATALOG.card(KONTEXT), CATALOG.complete(params())) == "a"
