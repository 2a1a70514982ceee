"""tune_spaces/*.yaml -> Space. What is wrong is one line with the file, the line and what to do.

recipe: digits-sida                  optional; --recipe names another
metric: FD-digits-cnn                a score, or {name: SCORE, direction: min}, or a list of both
budget: {images: 30_000, grace: 3_000, reduction: 3}
scheduler: asha                      none, asha, pbt or pb2
searcher: optuna                     random, optuna or grid
trials: 16
seeds: [0, 1, 2]
fields:
  objective.alpha: {uniform: [0.8, 1.4]}
  training.group_size: {choice: [16, 32]}
  objective.adversarial_weight: {loguniform: [1e-3, 1e-1], when: {objective.name: sida}}
  objective.logvar: false            one value: the same in all trials
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml

from sid_ray.errors import UserError
from sid_ray.metrics.names import is_score, larger_is_better, measured_by
from sid_ray.storage import text_lines
from sid_ray.sweep.fields_file import fields_of
from sid_ray.sweep.nodes import Nodes, line_of
from sid_ray.sweep.space import Budget, Metric, Scheduler, Searcher, Space

TOP = ("recipe", "metric", "budget", "scheduler", "searcher", "trials", "seeds", "fields")
BUDGET = ("images", "grace", "reduction", "interval", "total")


def read_space(path: Path) -> Space:
    """The space of a file. Raises UserError in one line."""
    return parse_space(read_text(path), str(path))


def read_text(path: Path) -> str:
    """A file's text. Raises UserError in one line."""
    try:
        return text_lines.read_text(path)
    except UserError as error:
        raise UserError(f"{error}; name a search space, like tune_spaces/*.yaml") from None


def parse_space(text: str, source: str) -> Space:
    """The space of a file's text. Raises UserError in one line that names ``source``."""
    nodes = Nodes(source)
    top = nodes.known(nodes.compose(text), "a search space", TOP)
    for name in ("metric", "budget", "fields"):
        if name not in top:
            raise UserError(f"{source}: {name}: is missing; a search space needs it")
    parameters, fixed, lines = fields_of(nodes, top["fields"][1])
    lines = {name: line_of(key) for name, (key, _) in top.items()} | lines

    def word(name: str, default: str, kind: Any) -> Any:
        return nodes.one_of(top[name][1], name, get_args(kind)) if name in top else default

    return Space(
        source=source,
        metrics=metrics_of(nodes, top["metric"][1]),
        budget=budget_of(nodes, top["budget"][1]),
        parameters=parameters,
        fixed=fixed,
        scheduler=word("scheduler", "none", Scheduler),
        searcher=word("searcher", "random", Searcher),
        trials=nodes.whole(top["trials"][1], "trials", 1) if "trials" in top else 0,
        seeds=seeds_of(nodes, top["seeds"][1]) if "seeds" in top else (0,),
        recipe=str(nodes.scalar(top["recipe"][1], "recipe") or "") if "recipe" in top else "",
        lines=lines,
    )


def metrics_of(nodes: Nodes, node: yaml.Node) -> tuple[Metric, ...]:
    """One score, or several."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    found = tuple(metric_of(nodes, part) for part in parts)
    names = [metric.name for metric in found]
    if not found or len(set(names)) < len(names):
        raise nodes.error(node, "metric: expected one or more scores, each once")
    return found


def metric_of(nodes: Nodes, node: yaml.Node) -> Metric:
    """A score's name, with the direction where the name does not tell it."""
    direction = None
    name: Any
    if isinstance(node, yaml.MappingNode):
        parts = nodes.known(node, "metric", ("name", "direction"))
        if "name" not in parts:
            raise nodes.error(node, "metric: name: is missing")
        name = nodes.scalar(parts["name"][1], "metric.name")
        if "direction" in parts:
            direction = nodes.one_of(parts["direction"][1], "metric.direction", ("min", "max"))
    else:
        name = nodes.scalar(node, "metric")
    if not isinstance(name, str) or not name:
        raise nodes.error(node, f"metric: expected a score's name, like FID, found {name!r}")
    direction = direction or direction_of(name)
    if not direction:
        raise nodes.error(
            node, f"metric {name}: say which way is better: {{name: {name}, direction: min}} or max"
        )
    return Metric(name, "min" if direction == "min" else "max")


def direction_of(name: str) -> str:
    """Which way a known score is better; empty for any other name."""
    if measured_by(name) is None or not is_score(name):
        return ""
    return "max" if larger_is_better(name) else "min"


def budget_of(nodes: Nodes, node: yaml.Node) -> Budget:
    """Images of a trial, and of the sweep."""
    parts = nodes.known(node, "budget", BUDGET)
    if "images" not in parts:
        raise nodes.error(node, "budget.images: is missing; a trial needs an end, in images seen")
    reduction: Any = 2.0
    if "reduction" in parts:
        reduction = nodes.scalar(parts["reduction"][1], "budget.reduction")
        if isinstance(reduction, bool) or not isinstance(reduction, int | float) or reduction <= 1:
            raise nodes.error(
                parts["reduction"][1],
                f"budget.reduction is {reduction!r}; expected a number above 1",
            )
    whole = {
        name: nodes.whole(value, f"budget.{name}", 1)
        for name, (_, value) in parts.items()
        if name != "reduction"
    }
    budget = Budget(reduction=float(reduction), **whole)
    for name in ("grace", "interval"):
        if getattr(budget, name) >= budget.images:
            raise nodes.error(
                parts[name][1],
                f"budget.{name} is {getattr(budget, name):,}; it must be below budget.images "
                f"({budget.images:,})",
            )
    if budget.total and budget.total < budget.images:
        raise nodes.error(
            parts["total"][1],
            f"budget.total is {budget.total:,}, less than one trial's {budget.images:,} images",
        )
    return budget


def seeds_of(nodes: Nodes, node: yaml.Node) -> tuple[int, ...]:
    """One seed, or several different ones."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    seeds = tuple(nodes.whole(part, "seeds") for part in parts)
    if not seeds or len(set(seeds)) < len(seeds):
        raise nodes.error(node, "seeds: expected one or more seeds, each once")
    return seeds
