"""Recipes as a person reads them: the table of all, and one in full. Plain text, 100 columns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from sid_ray.objectives.spec import objective_spec
from sid_ray.recipes.registry import FAMILIES, Recipe

ROW = "{:29}  {:7}  {:12}  {:>6}  {:>11}  {:11}  {:>5}  {:>5}"
HEADER = ROW.format(
    "recipe", "method", "data", "FID ", "images seen", "alpha/kappa", "batch", "group"
).rstrip()
FOOT = (
    "FID, images seen: of the published generator, one step; - where not published",
    "*: best of all SiDA and SiD2A generators of that teacher; the source does not say whose",
)


def row(entry: Recipe) -> str:
    config, published = entry.config, entry.published
    objective = objective_spec(config.objective.name)
    method, fid, images_seen = objective.label, "- ", "-"
    if published is not None:
        method = published.method
        digits = 2 if method == "SiD-LSG" else 3  # as published
        if published.fid is not None:
            fid = f"{published.fid:.{digits}f} "
        elif published.best_fid is not None:
            fid = f"{published.best_fid:.{digits}f}*"
        if published.images_seen is not None:
            images_seen = f"{published.images_seen:,}"
    training = config.training
    return ROW.format(
        config.recipe, method, config.data.name, fid, images_seen,
        objective.variant(config.objective), training.batch_size, training.group_size,
    )  # fmt: skip


def recipe_table(prefix: str = "") -> Iterator[str]:
    """Lines of the table of all recipes whose name starts with ``prefix``, by family."""
    yield HEADER
    for family, entries in FAMILIES.items():
        shown = [entry for entry in entries if entry.config.recipe.startswith(prefix)]
        if shown:
            yield ""
            yield family
            yield from map(row, shown)
    yield ""
    yield from FOOT


def recipe_json(entry: Recipe) -> str:
    """Summary, what was published, and every field of the config."""
    published = None if entry.published is None else dataclasses.asdict(entry.published)
    full = {"summary": entry.summary, "published": published}
    return json.dumps(full | dataclasses.asdict(entry.config), indent=2)
