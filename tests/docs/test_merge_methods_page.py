"""docs/merge_methods.md says what every method does, and its recipe is one."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from soups.methods import get_method, method_names
from soups.recipes.file import RecipeSection, parse_yaml
from soups.recipes.policies import Policies

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "merge_methods.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_its_formula_failures_invariants_and_paper(name):
    section = SECTIONS[name]
    for part in ("θ = ", "Invariants: ", "Fails ", "arxiv.org/abs/"):
        assert part in section.replace("W = ", "θ = "), part
    own = set(get_method(name).params) - {"scale", "extrapolate"}
    missing = {param for param in own if param not in section}
    # Options that another method introduced are explained there.
    assert missing <= ({"density", "seed", "elect"} if name == "della" else {"elect", "density"}), missing


def test_the_recipe_on_the_page_is_valid():
    block = re.search(r"```yaml\n(.*?)```", SECTIONS["Recipes"], re.S)
    assert block is not None
    section = RecipeSection.model_validate(parse_yaml(block.group(1), "page"))
    assert section.coefficients[0].tensors == r"encoder\..*"


def test_every_policy_is_on_the_page():
    for field in fields(Policies):
        assert f"`{field.name}`" in SECTIONS["Policies"]
