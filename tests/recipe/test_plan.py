"""Recipes are read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.recipe.plan import read_recipe
from hyps_bids.training.contrasts import ContrastSettings
from tests.raising import raises

SHIPPED = Path(__file__).parents[2] / "hyps_bids" / "data" / "recipe.toml"


def test_shipped_recipe() -> None:
    plan = read_recipe()
    assert plan.data.validation == 13
    adapter = plan.adapter
    assert adapter.config == AdapterConfig("hyps", 8, 8, 1.0)
    assert adapter.contrasts == ContrastSettings()
    assert adapter.loop.seed == adapter.seeds[0] == 11
    assert (adapter.loop.steps, adapter.loop_of_new_base.steps) == (1800, 6000)
    # What is not said anew for a new base stays
    assert adapter.loop_of_new_base.ema == adapter.loop.ema == 0.997
    assert adapter.batch_size["cuda"] == plan.networks["base"].batch_size["cuda"] == 16


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[soup]", "[soup", "not valid TOML"),
        ("[base]", "[basis]", "base"),
        ("rank = 8", "rank = 0", "rank"),
        ('title = "Adapter', 'titel = "Adapter', "titel"),
        ("mapped = 0.2", "maped = 0.2", "maped"),
        ('license = "CC BY-SA 4.0"', "", "license"),
    ],
)
def test_impossible_recipes(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = tmp_path / "recipe.toml"
    text = SHIPPED.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    code = "recipe-unreadable" if "TOML" in named else "recipe-entry"
    with raises(BadData, code, path, named):
        read_recipe(path)


def test_recipe_that_is_not_there(tmp_path: Path) -> None:
    with raises(MissingInput, "no-recipe", tmp_path / "none.toml"):
        read_recipe(tmp_path / "none.toml")
