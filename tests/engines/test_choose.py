"""Which engines are started: the embedded one only where nothing else is configured, or named."""

from pathlib import Path
from typing import Any

import pytest

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
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
