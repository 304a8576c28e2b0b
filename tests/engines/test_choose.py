"""Which engines are started: the embedded one only where nothing else is configured, or named."""

from pathlib import Path
from typing import Any

import pytest

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import InvalidRequest, StartupError
from fluxserve.core.request import Approximation, ImageParams
from fluxserve.core.routing import Router
from fluxserve.engines.choose import choose_engines
from fluxserve.settings import load

UPSTREAM = {"name": "provider", "kind": "fluxserve", "base_url": "http://127.0.0.1:9"}
ROUTE = {"model": "flux-dev", "engine": "embedded"}


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({}, {"embedded", "simulator"}),
        ({"upstream": [UPSTREAM]}, {"simulator"}),
        ({"upstream": [UPSTREAM], "route": [ROUTE]}, {"embedded", "simulator"}),
        ({"route": [{"model": "flux-dev", "engine": "simulator"}]}, {"simulator"}),
    ],
)
def test_the_embedded_engine_runs_where_nothing_else_does_or_a_route_names_it(
    tmp_path: Path, said: dict[str, Any], names: set[str]
) -> None:
    settings = load({"data_dir": str(tmp_path), **said}, environ={})
    choice = choose_engines(settings, Catalog(CARDS, lambda: 1))
    assert {engine.name for engine in choice.engines} == names


@pytest.mark.parametrize(
    ("said", "engine"),
    [
        ({}, "simulator"),
        ({"upstream": [UPSTREAM]}, "simulator"),
        ({"route": [{"model": "*", "engine": "embedded", "priority": 5}]}, "simulator"),
        ({"route": [{"model": "simulator", "engine": "embedded"}]}, "embedded"),
    ],
)
def test_who_asks_for_the_simulator_gets_it_whatever_a_pattern_says(
    tmp_path: Path, said: dict[str, Any], engine: str
) -> None:
    catalog = Catalog(CARDS, lambda: 1)
    choice = choose_engines(load({"data_dir": str(tmp_path), **said}, environ={}), catalog)
    card = catalog.card("simulator")
    for drawn in (0.0, 0.5, 0.99):
        router = Router(choice.routes, is_able=lambda name: True, draw=lambda at=drawn: at)
        assert router.choose(card) == engine


ONE = {**UPSTREAM, "models": ["flux-kontext-pro"]}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"upstream": [{**UPSTREAM, "models": ["flux-kontxt-pro"]}]},
            "no model named 'flux-kontxt",
        ),
        ({"upstream": [{**UPSTREAM, "models": {"flux-prow": "x"}}]}, "upstream provider: models"),
        ({"route": [{"model": "flux-prow", "engine": "embedded"}]}, "no model named 'flux-prow'"),
        (
            {"upstream": [ONE], "route": [{"model": "flux-pro", "engine": "provider"}]},
            "the upstream provider does not serve 'flux-pro': add it to its models",
        ),
    ],
)
def test_a_name_that_nothing_could_be_served_by_stops_the_start(
    tmp_path: Path, said: dict[str, Any], words: str
) -> None:
    settings = load({"data_dir": str(tmp_path), **said}, environ={})
    with pytest.raises(StartupError, match=words):
        choose_engines(settings, Catalog(CARDS, lambda: 1))


A = Approximation
PAID = {**UPSTREAM, "name": "paid", "kind": "wavespeed", "key_env": "KEY"}


@pytest.mark.parametrize(
    ("engine", "asked", "words"),
    [
        ("embedded", (A.SKIP, A.REF_KV), None),
        ("embedded", (A.SKIP, A.FP8), "approximate: fp8 cannot be had of embedded; .*engine.fp8"),
        ("coarse", (A.SKIP, A.FP8), None),
        ("both", (A.SKIP, A.FP8), None),
        ("paid", (A.SKIP,), "approximate: skip cannot be had of paid, which knows go_fast at"),
        ("paid", (), None),
        ("paid", None, None),
        ("provider", (A.FP8,), None),  # the other server judges
        ("simulator", (A.FP8,), None),
    ],
)
def test_an_approximation_is_refused_where_nobody_knows_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    asked: tuple[A, ...] | None,
    words: str | None,
) -> None:
    monkeypatch.setenv("KEY", "secret")
    said = {"upstream": [UPSTREAM, PAID], "route": [ROUTE], "data_dir": str(tmp_path)}
    dtype = "fp8" if engine == "coarse" else "auto"
    twins = "on" if engine == "both" else "auto"
    settings = load({**said, "engine": {"dtype": dtype, "fp8": twins}}, environ={})
    catalog = Catalog(CARDS, lambda: 1)
    choice = choose_engines(settings, catalog)
    params = ImageParams(model="flux-dev", prompt="a fox", approximate=asked)
    request = catalog.complete(params)
    name = "embedded" if engine in ("coarse", "both") else engine
    if words is None:
        assert choice.place(name, request) == name
        return
    with pytest.raises(InvalidRequest, match=words) as caught:
        choice.place(name, request)
    assert caught.value.field == "approximate"
