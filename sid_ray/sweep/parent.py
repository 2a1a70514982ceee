"""A sweep in MLflow: one run named as the sweep, below which MLflow's pages show the trials' runs.

The runner calls ``after_event`` after each line of the ledger. What the ledger says goes through a
journal in the sweep's folder (sender.py), so a server that is away stops nothing and misses
nothing. Trials' runs are begun by their own processes, which know of no sweep: they become children
by MLflow's tag mlflow.parentRunId, set from here once run.json names their MLflow run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.metrics.names import BEST, shown_score
from sid_ray.run_folder import RunRecord, read_record, tracking_uri
from sid_ray.storage.durable import replace_file
from sid_ray.storage.store import Store
from sid_ray.sweep.display import shown_values
from sid_ray.sweep.importance import Importance, importance_of
from sid_ray.sweep.repeats import means_of
from sid_ray.sweep.report import command_of, csv_of, write_report
from sid_ray.sweep.results import Sweep, base_of, read_sweep, repeats_in
from sid_ray.sweep.space import Choice, Parameter
from sid_ray.sweep.trials import RUNNING, STATES
from sid_ray.tracking.copies import here_and_now, is_copy, named, own_record, store_is_beside
from sid_ray.tracking.mlflow_run import Target, error_line
from sid_ray.tracking.mlflow_sqlite import artifacts_of
from sid_ray.tracking.sender import TIMEOUT_S, Tracking

KEY = "parent.json"  # what finds the MLflow run again
SPACE, FRONT, IMPORTANCE = "space.yaml", "pareto.json", "importance.json"
REPORT = "report.html"
ENDS = {"finished": "FINISHED", "failed": "FAILED"}  # any other end is an interruption: KILLED

_parents: dict[Path, Parent] = {}


def after_event(
    folder: Path, tell: Callable[[str], None] = lambda text: None, timeout_s: float = TIMEOUT_S
) -> str:
    """Tells MLflow what is new in a sweep's folder, without waiting for it, and never raises.

    Only once sweep.json says that the sweep is over, it waits, up to ``timeout_s``, until all is
    sent. Returns '' or a line: what went wrong, or what is left to send; the same call after the
    next start sends that.
    """
    folder = folder.absolute()
    try:
        sweep = read_sweep(folder)
        parent = _parents.get(folder)
        if parent is None:
            parent = _parents[folder] = Parent(sweep, tell)
        parent.tell(sweep)
        if sweep.state == RUNNING:
            return ""
        del _parents[folder]
        return parent.finish(sweep, timeout_s)
    except Exception as error:  # the trials matter more than what is told of them
        return f"warning: MLflow is not told of sweep {folder.name}: {error_line(error)}"


class Parent:
    """The sweep's own MLflow run.

    Args:
        sweep: as it is now; its folder keeps the journal.
        tell: takes lines for a person.
        run: what talks to MLflow; another one in tests.
    """

    def __init__(
        self, sweep: Sweep, tell: Callable[[str], None] = lambda text: None, run: Any = None
    ):
        self.config = config_of_runs(sweep)
        self._tracking = Tracking(target_of(sweep, self.config), sweep.folder, tell, run)
        self._tracking.status("RUNNING")
        self._children: set[str] = set()
        self._tags: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._file(sweep.folder / SPACE, sweep.text)

    @property
    def run_id(self) -> str:
        """MLflow's id, '' until MLflow was reached."""
        return self._tracking.run_id

    def tell(self, sweep: Sweep) -> None:
        """What has changed since it was last called."""
        spent = sweep.images_spent
        found = {BEST + name: value for name, value in best_scores(sweep).items()}
        self._tracking.metrics(found | {"images_spent": spent}, spent)
        self._tell_tags(tags_of(sweep))
        self._tell_children(sweep)
        counts = {f"trials/{state}": sweep.states.get(state, 0) for state in STATES}
        if counts != self._counts:
            self._counts = counts
            # Not of images: a trial that ends at its last score adds none.
            self._tracking.metrics(counts, sweep.events)
            self._file(sweep.folder / FRONT, as_json(front_json(sweep)))
            self._file((sweep.folder / REPORT).with_suffix(".csv"), csv_of(sweep))

    def finish(self, sweep: Sweep, timeout_s: float) -> str:
        """The report, the importance of fields, and the end. Returns '' or what is left."""
        trouble = ""
        try:
            self._tell_report(sweep)
        except Exception as error:  # the journal is to be closed all the same
            trouble = f"warning: the report of sweep {sweep.name} is not whole: {error_line(error)}"
        self._children.clear()  # a trial's MLflow run may have become another one
        self._tell_children(sweep)
        self._tracking.status(ENDS.get(sweep.state, "KILLED"))
        return "; ".join(filter(None, [trouble, self._tracking.finish(timeout_s)]))

    def _tell_report(self, sweep: Sweep) -> None:
        found, repeats = importance_of(sweep), repeats_in(sweep)
        means = means_of(repeats, sweep.metric.name)
        if means:
            of_seeds = {f"mean_of_seeds/{of}": mean for of, mean in means.items()}
            self._tracking.metrics(of_seeds, sweep.images_spent)
        shares = {f"importance/{name}": share for name, share in found.shares.items()}
        if shares:
            self._tracking.metrics(shares, sweep.images_spent)
        self._file(sweep.folder / IMPORTANCE, as_json(importance_json(found)))
        for file in write_report(sweep, sweep.folder / REPORT, found):
            self._tracking.file(file)

    def _tell_tags(self, tags: Mapping[str, str]) -> None:
        new = {name: value for name, value in tags.items() if self._tags.get(name) != value}
        if new:
            self._tags |= new
            self._tracking.tags(new)

    def _tell_children(self, sweep: Sweep) -> None:
        runs = [name for trial in sweep.trials.values() for name in trial.runs]
        for name in (*runs, *(repeat.run for repeat in repeats_in(sweep))):
            if name in self._children:
                continue
            run_id = mlflow_run_of(self.config, name)
            if run_id:
                self._children.add(name)
                self._tracking.child(run_id)

    def _file(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        self._tracking.file(path)


def config_of_runs(sweep: Sweep) -> DistillConfig:
    """A config with the trials' folder and MLflow's address. Raises UserError."""
    base = base_of(sweep)
    if base is None:
        raise UserError(f"the recipe {sweep.recipe!r} is not known")
    return base


def target_of(sweep: Sweep, config: DistillConfig) -> Target:
    """The sweep's run in MLflow, in the experiment of its trials."""
    uri, record = tracking_uri(config), record_of(sweep.folder, store_is_beside(config))
    tags = {"recipe": sweep.recipe, "system": "sid_ray", "sid_ray.sweep": sweep.name}
    if record.copied_from:
        tags["copied_from"] = record.copied_from
    return Target(
        uri,
        config.output.experiment,
        sweep.name,
        record.key,
        params_of(sweep),
        tags,
        artifacts_of(uri, config.output.folder),
    )


def record_of(folder: Path, goes_on: bool) -> RunRecord:
    """The key that was drawn once, so that a sweep begun anew under its name is another run.

    A copied sweep gets one of its own: copies.py.

    Args:
        goes_on: whether MLflow's store is copied with the folder of runs.
    """
    path, store = folder / KEY, Store.at(folder)
    record, fields = RunRecord(""), ("key", "name", "place", "number", "copied_from")
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        told = json.loads(path.read_text())
        record = replace(record, **{name: told[name] for name in fields if name in told})
    if record.name and is_copy(record, store):
        record = own_record(record, store, folder, goes_on and record.name == store.name)
    record = here_and_now(record, store)
    replace_file(path, as_json({name: getattr(record, name) for name in fields}))
    return record


def mlflow_run_of(config: DistillConfig, run: str) -> str:
    """MLflow's id of a trial's run, '' where it has none yet or its folder cannot be read."""
    try:
        store = Store.at(config.output.folder) / run
        record = read_record(store)
        if record is None or is_copy(named(record), store):  # a copy's is the first one's
            return ""
    except (UserError, OSError):
        return ""
    return record.tracker_run_id or ""


# What is told -------------------------------------------------------------------------------------


def params_of(sweep: Sweep) -> dict[str, Any]:
    found: dict[str, Any] = {"recipe": sweep.recipe}
    found["metric"] = ", ".join(f"{m.name} ({m.direction})" for m in sweep.metrics)
    space = sweep.space
    if space is None:
        return found
    found |= {"scheduler": space.scheduler, "searcher": space.searcher, "trials": space.trials}
    budget = {f"budget.{name}": value for name, value in vars(space.budget).items() if value}
    fields: dict[str, str] = {}
    for parameter in space.parameters:
        cases = [fields[parameter.name]] if parameter.name in fields else []
        fields[parameter.name] = "; ".join([*cases, described(parameter)])
    return found | budget | {f"space.{name}": text for name, text in fields.items()}


def described(parameter: Parameter) -> str:
    """A parameter's distribution in words."""
    domain = parameter.domain
    if isinstance(domain, Choice):
        text = f"{'grid' if domain.grid else 'choice'} [{shown_values(domain.values)}]"
    else:
        kind = "loguniform" if domain.log else "uniform"
        text = f"{kind} [{domain.low:g}, {domain.high:g}]"
    when = " and ".join(f"{one.name} is {shown_values(one.values)}" for one in parameter.when)
    return f"{text} when {when}" if when else text


def best_scores(sweep: Sweep) -> dict[str, float]:
    """The best value of each metric so far, of all trials at any decision."""
    found = {}
    for metric in sweep.metrics:
        best = [one[0] for trial in sweep.trials.values() if (one := trial.best(metric))]
        if best:
            found[metric.name] = metric.sign * max(metric.sign * value for value in best)
    return found


def tags_of(sweep: Sweep) -> dict[str, str]:
    """The state, the best trial, and what MLflow shows as the run's description."""
    tags, best = {"sweep.state": sweep.state}, sweep.best
    if best is None:
        return tags
    score = shown_score(sweep.metric.name, best.last(sweep.metric.name) or 0.0)
    tags |= {"best.trial": best.name, "best.run": best.run, "best.score": score}
    command = command_of(sweep, best.point, f"{sweep.name}-best")
    text = f"Best trial: {best.run}, {sweep.metric.name} {score} after {best.images_seen:,} images."
    if len(sweep.metrics) > 1:
        text += f"\n\nPareto front: {', '.join(trial.run for trial in sweep.front)}."
    return tags | {"mlflow.note.content": f"{text}\n\n    {command}" if command else text}


def front_json(sweep: Sweep) -> list[dict[str, Any]]:
    return [
        {
            "trial": trial.name,
            "run": trial.run,
            "images_seen": trial.images_seen,
            "scores": {metric.name: trial.last(metric.name) for metric in sweep.metrics},
            "point": trial.point,
        }
        for trial in sweep.front
    ]


def importance_json(found: Importance) -> dict[str, Any]:
    return {
        "shares": found.shares,
        "conditional": {
            name: {"share": share, "trials": count}
            for name, (share, count) in found.conditional.items()
        },
        "images_seen": found.images_seen,
        "trials": found.trials,
        "trouble": found.trouble,
    }


def as_json(values: Any) -> str:
    return json.dumps(values, indent=2) + "\n"
