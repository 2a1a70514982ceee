"""What a sweep was asked to be, and its folder as a whole: sweep.json, the space, the trials.

sweep.json: name, text of the space, recipe, metrics, when the sweep was started, its state. What is
in trials.jsonl is told in trials.py. Reading starts and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.metrics.names import larger_is_better
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import own_folder
from sid_ray.storage.durable import replace_file
from sid_ray.storage.schemes import is_path
from sid_ray.sweep import pareto
from sid_ray.sweep.repeats import Repeat, read_repeats, repeats_of
from sid_ray.sweep.space import Metric, Space
from sid_ray.sweep.space_file import parse_space
from sid_ray.sweep.trials import Point, TrialRecord, read_trials, spent_of, states_of

SWEEP = "sweep.json"
TASK = "task.json"  # of trainable.SweepTask: the config that all trials began with


@dataclass(frozen=True)
class SweepOrder:
    """A sweep, checked.

    Args:
        name: its folder, and the beginning of its runs' names.
        space: with as many trials as were asked for; text: of its file.
        base: the recipe with what holds for all trials. output.folder is runs_folder's.
        concurrent: trials at once; each gets its share of the cluster's CPUs or GPUs.
    """

    name: str
    space: Space
    text: str
    base: DistillConfig
    concurrent: int

    @property
    def folder(self) -> Path:
        """Of the sweep: beside its runs, or for runs in S3 in the folder ``runs`` here."""
        runs = self.base.output.folder
        return (Path(runs) if is_path(runs) else own_folder()) / self.name


@dataclass(frozen=True)
class Sweep:
    """A whole sweep. ``space`` is None where its text cannot be read; ``text`` is that text.

    ``events``: how many lines the ledger has. ``notes``: what could not be read.
    """

    folder: Path
    name: str
    recipe: str
    metrics: tuple[Metric, ...]
    space: Space | None
    text: str
    started: str
    state: str
    trials: Mapping[str, TrialRecord]
    notes: tuple[str, ...] = ()
    events: int = 0

    @property
    def metric(self) -> Metric:
        """The score that counts first."""
        return self.metrics[0]

    @property
    def images_spent(self) -> int:
        return spent_of(self.trials.values())

    @property
    def states(self) -> dict[str, int]:
        """How many trials are in each state, in the order of STATES."""
        return states_of(self.trials.values())

    @property
    def points(self) -> list[Point]:
        """All that were tried: of every leg of every trial."""
        return [leg.point for trial in self.trials.values() for leg in trial.legs]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that vary, in the order of the space."""
        known = self.space.names if self.space else ()
        return tuple(dict.fromkeys([*known, *(name for point in self.points for name in point)]))

    @property
    def ranked(self) -> list[TrialRecord]:
        """All trials, the best first: pareto.ranked."""
        return pareto.ranked(self.metrics, self.trials.values())

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto front, the best trial first: pareto.front_of."""
        return pareto.front_of(self.metrics, self.trials.values())

    @property
    def best(self) -> TrialRecord | None:
        """The best trial, None for none: pareto.best_of."""
        return pareto.best_trial(self.metrics, self.trials.values())


def read_sweep(folder: Path) -> Sweep:
    """The sweep of a folder, finished or not. Raises UserError where there is none."""
    about = read_about(folder)
    if not about:
        raise UserError(
            f"{folder} is no sweep: {SWEEP} is missing; name a sweep's folder, like runs/SWEEP"
        )
    notes: list[str] = []
    text = str(about.get("space", ""))
    space = None
    try:
        space = parse_space(text, "space")
    except UserError as error:
        notes.append(f"the space cannot be read: {error}")
    metrics = space.metrics if space else tuple(map(metric_of, about.get("metrics", ())))
    if not metrics:
        raise UserError(f"{folder}/{SWEEP} names no metric; start the sweep again")
    told = read_trials(folder)
    return Sweep(
        folder=folder,
        name=str(about.get("name", folder.name)),
        recipe=str(about.get("recipe", "")),
        metrics=metrics,
        space=space,
        text=text,
        started=str(about.get("started", "")),
        state=str(about.get("state", "")),
        trials=told.trials,
        notes=(*notes, *told.notes),
        events=told.lines,
    )


def metric_of(told: Any) -> Metric:
    """A metric by its name, or by {name, direction}."""
    if isinstance(told, Mapping):
        return Metric(str(told["name"]), "max" if told.get("direction") == "max" else "min")
    return Metric(str(told), "max" if larger_is_better(str(told)) else "min")


def base_of(sweep: Sweep) -> DistillConfig | None:
    """The config that the trials' points were put into, None where it cannot be known.

    Runs on a disk lie beside the sweep, wherever that was moved since.
    """
    try:
        base = DistillConfig.from_json(json.loads((sweep.folder / TASK).read_text())["base"])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        try:
            base = recipe(sweep.recipe)
        except UserError:
            return None
    if not is_path(base.output.folder):
        return base
    return replace(base, output__folder=str(sweep.folder.absolute().parent))


def repeats_in(sweep: Sweep) -> list[Repeat]:
    """Best trial and recipe with each seed; empty until a run beside the trials has ended."""
    ended, base = read_repeats(sweep.folder), base_of(sweep)
    if not ended or sweep.space is None or base is None:
        return []
    return repeats_of(sweep.name, sweep.space, base, sweep.trials.values(), ended)


# sweep.json ---------------------------------------------------------------------------------------


def read_about(folder: Path) -> dict[str, Any]:
    """What sweep.json holds, empty where there is none. Raises UserError where it is damaged."""
    try:
        about = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("no mapping")
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(
            f"{folder}/{SWEEP} cannot be read ({error}); remove it and repeat the sweep's command: "
            "it writes it anew, and the trials go on"
        ) from None
    return about


def write_about(folder: Path, **changes: Any) -> None:
    """Replaces some of sweep.json; a crash leaves the old or the new one."""
    values = read_about(folder) | changes
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / SWEEP, json.dumps(values, indent=2) + "\n")
