"""``sid-ray recipes``: the table of recipes, or one of them in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from sid_ray.recipes.registry import RECIPES, recipe_entry
from sid_ray.recipes.table import recipe_json, recipe_table


@dataclass(frozen=True)
class RecipesOptions:
    """Lists recipes with what was published of them, or prints one in full as JSON."""

    name: Annotated[str, Positional, arg(metavar="NAME")] = ""
    """A recipe's name, or the beginning of some."""


def recipes(options: RecipesOptions) -> int:
    """Raises UserError where no recipe's name begins so."""
    wanted = options.name
    if wanted in RECIPES or not any(name.startswith(wanted) for name in RECIPES):
        print(recipe_json(recipe_entry(wanted)))
        return 0
    for line in recipe_table(wanted):
        print(line)
    return 0
