"""The page of this dialect names every model and input that it has."""

from pathlib import Path

import pytest

from fluxserve.dialects.replicate.inputs import TABLES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "dialects" / "replicate.md"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_model_and_its_inputs_are_on_the_page(name: str) -> None:
    page = PAGE.read_text("utf-8")
    assert f"`{name.partition('/')[2]}`" in page
    missing = [field.name for field in TABLES[name].fields if f"`{field.name}`" not in page]
    assert not missing


def test_inputs_without_effect_are_listed() -> None:
    listed = PAGE.read_text("utf-8").partition("without effect")[2]
    assert all(f"`{name}`" in listed for table in TABLES.values() for name in table.ignored)
