"""A sweep from start to end: Ray, Tune, and a table of its trials.

First slice: points drawn at random or of a grid, schedulers none and asha. docs/design-sweeps.md
says what follows. A sweep that was stopped goes on when it is started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sid_ray.config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.ray_environment import joins_cluster, set_ray_environment
from sid_ray.run_folder import runs_folder
from sid_ray.sweep.asha import LastingAsha
from sid_ray.sweep.sampling import grid_points, keyed, random_point
from sid_ray.sweep.segment import ACTORS_OWN
from sid_ray.sweep.space import Space, Value
from sid_ray.sweep.space_check import check_space
from sid_ray.sweep.trainable import DIVERGED, IMAGES, SweepTask, TrialTrainable

STATE = "tune"  # Ray Tune's notes in the sweep's folder
LEDGER = "scores.jsonl"  # what trials told at their decisions
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its frame of settings ignores verbose=0
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # a killed driver forgets what was since
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
A_LITTLE = 0.001  # of a node's own resource: keeps trials on the driver's node, takes no CPU
RETRIES = 3  # of a trial whose actor died


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended: its last scores, or why it has none."""

    name: str
    point: dict[str, Value]
    images_seen: int
    scores: dict[str, float]
    failure: str = ""


def run_sweep(
    space: Space,
    text: str,
    base: DistillConfig,
    name: str,
    concurrent: int = 1,
    tell: Callable[[str], None] = print,
) -> list[TrialResult]:
    """Runs all trials, or goes on with them. Returns how each ended, the best first.

    Args:
        text: of the space's file.
        name: of the sweep: its folder, and the beginning of its runs' names.
        concurrent: trials at once; each gets its share of the cluster's CPUs or GPUs.

    Raises UserError before anything starts.
    """
    check_space(space, base)
    if space.searcher == "optuna" or space.scheduler in ("pbt", "pb2"):
        raise UserError(
            f"searcher {space.searcher} with scheduler {space.scheduler} is not there yet: use "
            "random or grid with none or asha"
        )
    base = replace(base, output__folder=runs_folder(base.output.folder))
    folder = Path(base.output.folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "space.yaml").write_text(text)
    start_ray(base)
    try:
        task = SweepTask(
            name=name,
            space=text,
            source=space.source,
            base=base.to_json(),
            workers=share(base, concurrent),
            environment={key: os.environ[key] for key in ACTORS_OWN if key in os.environ},
        )
        task.write(folder)
        tuner = tuner_of(space, base, folder, concurrent, Teller(space, tell))
        return results_of(space, tuner.fit(), name)
    finally:
        ray.shutdown()


def start_ray(base: DistillConfig) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine for this sweep alone."""
    set_ray_environment()
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if joins_cluster():
        ray.init(logging_level="warning")
        return
    ray.init(
        address="local",
        num_cpus=None if base.resources.use_gpu else os.cpu_count(),
        include_dashboard=False,
        logging_level="warning",
        log_to_driver=False,
    )


def share(base: DistillConfig, concurrent: int) -> int:
    """Workers of a trial where so many run at once."""
    kind = "GPU" if base.resources.use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < concurrent:
        raise UserError(f"{concurrent} trials at once need {concurrent} {kind}s, there are {there}")
    return there // concurrent


def own_node() -> str:
    """The resource that only this driver's node has."""
    mine = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == mine)
    names = [name for name in node["Resources"] if name.startswith("node:")]
    return next(name for name in names if "internal" not in name)


def tuner_of(
    space: Space, base: DistillConfig, folder: Path, concurrent: int, teller: tune.Callback
) -> tune.Tuner:
    """A new experiment, or the one that was stopped."""
    # No CPU: Ray's autoscaling coordinator promises trials all CPUs of a node, free or not.
    place = tune.PlacementGroupFactory([{own_node(): A_LITTLE}])
    trainable = tune.with_resources(TrialTrainable, place)
    points = [keyed(space, base, point) for point in points_of(space, base)]
    param_space = {"point": tune.grid_search(points), "folder": str(folder)}
    state = folder / STATE
    if tune.Tuner.can_restore(str(state)):
        return tune.Tuner.restore(
            str(state), trainable, resume_errored=True, param_space=param_space
        )
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            scheduler=scheduler_of(space, folder),
            max_concurrent_trials=concurrent,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            callbacks=[teller, JsonLoggerCallback()],  # restore wants its result.json
            verbose=0,
        ),
    )


def points_of(space: Space, base: DistillConfig) -> list[dict[str, Value]]:
    if space.searcher == "grid":
        return grid_points(space, base)
    return [random_point(space, base, space.seeds[0], number) for number in range(space.trials)]


def scheduler_of(space: Space, folder: Path) -> TrialScheduler:
    """Ray's scheduler, which judges by the first metric."""
    if space.scheduler == "none":
        return FIFOScheduler()
    return LastingAsha(space.budget, space.metrics[0], folder / LEDGER, IMAGES)


class Teller(tune.Callback):
    """A line for each decision."""

    def __init__(self, space: Space, tell: Callable[[str], None]):
        self.names = [metric.name for metric in space.metrics]
        self.tell = tell

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any):
        if result[DIVERGED]:
            self.tell(f"{trial.trial_id}: gave up: {result['failure']}")
            return
        scores = ", ".join(f"{name} {result[name]:.4g}" for name in self.names)
        self.tell(f"{trial.trial_id}: {result[IMAGES]:,} images, {scores}")


def results_of(space: Space, grid: tune.ResultGrid, name: str) -> list[TrialResult]:
    """Every trial that Tune knows, the best first by the first metric, those without at the end."""
    found = []
    for result in grid:
        told = result.metrics or {}
        failure = told.get("failure", "") or (str(result.error) if result.error else "")
        whole = not failure and all(metric.name in told for metric in space.metrics)
        found.append(
            TrialResult(
                f"{name}-{Path(result.path).name}",
                dict((result.config or {}).get("point", {})),
                int(told.get(IMAGES, 0)),
                {metric.name: told[metric.name] for metric in space.metrics} if whole else {},
                "" if whole else failure or "it told no score",
            )
        )
    first = space.metrics[0]
    return sorted(
        found,
        key=lambda one: -first.sign * one.scores[first.name] if one.scores else float("inf"),
    )
