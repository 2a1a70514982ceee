"""A trial as Ray Tune sees it: a step is a segment, a checkpoint is a pointer."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune

from sid_ray.checkpoint.find import checkpoints, newest_listed
from sid_ray.checkpoint.manifest import MANIFEST, images_seen_of
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.groups import GroupPlan
from sid_ray.run_folder import RunFolder
from sid_ray.sweep.arithmetic import decision_points, segment_end, worst
from sid_ray.sweep.segment import (
    Trial,
    TrialDivergedError,
    TrialFailedError,
    TrialStoppedError,
)
from sid_ray.sweep.space import Space, SweepBudget, Value, config_of
from sid_ray.sweep.space_file import parse_space

IMAGES, RUN, SECONDS = "images_seen", "run", "segment_seconds"
ENDED, WHY = "ended", "why"  # of a trial that ends itself: diverged or failed, and the reason
TASK = "task.json"
SPEC, FOLDER = "spec", "folder"  # of a trial's Tune config


class Spec(NamedTuple):
    """What a trial's Tune config holds: its name, its present run, and the point of that.

    ``from_run`` and ``began_at`` are those of an exploit: the run and the images seen of the
    checkpoint that this run begins from. ``reported``: images seen of its last result that needs
    no second answer.
    """

    trial: str
    run: str
    point: dict[str, Value]
    from_run: str = ""
    began_at: int = 0
    reported: int = 0

    @classmethod
    def of(cls, tune_trial: Any) -> Spec:
        return cls(**tune_trial.config[SPEC])


@dataclass(frozen=True)
class SweepTask:
    """What all trials share, in the sweep's folder.

    A file, written anew at each start. (Without the cluster's address: that is the one which the
    trial's actor is in.)

    Args:
        name: of the sweep.
        space: text of the space's file. source: its name.
        base: config of the recipe, as JSON.
        workers: that a trial may have.
        environment: see segment.Trial.
    """

    name: str
    space: str
    source: str
    base: str
    workers: int
    environment: dict[str, str]

    def write(self, folder: Path) -> None:
        (folder / TASK).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> SweepTask:
        return cls(**json.loads((folder / TASK).read_text()))

    def parsed(self) -> tuple[Space, DistillConfig]:
        return parse_space(self.space, self.source), DistillConfig.from_json(self.base)


class TrialTrainable(tune.Trainable):
    """One trial. Between two steps it has no process and holds no resources."""

    def setup(self, config: dict[str, Any]) -> None:
        folder = Path(config[FOLDER])
        task = SweepTask.read(folder)
        self.space, base = task.parsed()
        spec = Spec(**config[SPEC])
        self.refused, self.reported = "", spec.reported
        try:
            trial = config_of(self.space, base, spec.point)
        except UserError as error:  # a combination that only the config can judge
            trial, self.refused = base, str(error)
        trial = replace(trial, output__run=spec.run)
        if self.space.scheduler == "pbt":
            trial = keeping_for_others(trial, self.space.budget)
        address = ray.get_runtime_context().gcs_address
        began_from = donor_of_trial(trial, spec) if spec.from_run else ""
        self.trial = Trial(trial, folder, address, task.environment, began_from, spec.began_at)
        training = trial.training
        self.points = decision_points(self.space.budget, self.space.scheduler, training.batch_size)
        self.workers = workers_for(trial.group_plan(1), task.workers)

    def step(self) -> dict[str, Any]:
        """Trains to the next decision. A trial that cannot go on reports the worst score."""
        if self.refused:
            return self.given_up("failed", self.refused)
        began = time.monotonic()
        target = segment_end(self.points, self.trial.images_seen, self.reported)
        names = [metric.name for metric in self.space.metrics]
        try:
            seen = self.trial.advance(target, self.workers)
            scores = self.trial.scores(seen, names, self.workers)
        except TrialDivergedError as error:
            return self.given_up("diverged", str(error))
        except TrialFailedError as error:
            return self.given_up("failed", str(error))
        except TrialStoppedError:
            while True:  # the sweep stops, and will end this actor: no result is to be judged
                time.sleep(1)
        self.reported = seen
        told = {IMAGES: seen, RUN: self.trial.name, SECONDS: time.monotonic() - began}
        return {**told, **scores, ENDED: "", WHY: "", "done": seen >= self.points[-1]}

    def given_up(self, ended: str, why: str) -> dict[str, Any]:
        scores = {metric.name: worst(metric) for metric in self.space.metrics}
        told = {IMAGES: self.trial.images_seen, RUN: self.trial.name, SECONDS: 0.0}
        return {**told, **scores, ENDED: ended, WHY: why, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """What Tune must know; the state itself is the run's."""
        return {RUN: self.trial.name, IMAGES: self.reported}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """That of its run; after an exploit the spec says what is reported of the new one."""
        if checkpoint and checkpoint[RUN] == self.trial.name:
            self.reported = checkpoint[IMAGES]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Becomes another trial, or this one after an exploit: saves an actor's start."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        self.trial.end()


def donor_of_trial(config: DistillConfig, spec: Spec) -> str:
    """The address of the checkpoint that a trial takes over; empty where its run has its own.

    Raises FileNotFoundError where it is gone.
    """
    if newest_listed(RunFolder.of(config).store):
        return ""
    run = RunFolder.of(replace(config, output__run=spec.from_run)).store
    for name in checkpoints(run):
        if images_seen_of(name) == spec.began_at and run.size(f"{name}/{MANIFEST}"):
            return f"{run}/{name}"
    raise FileNotFoundError(f"{run} has no checkpoint at {spec.began_at:,} images any more")


def workers_for(plan: GroupPlan, most: int) -> int:
    """As many as may be used: a worker needs a group of its own."""
    return max(1, min(most, plan.num_groups))


def keeping_for_others(config: DistillConfig, budget: SweepBudget) -> DistillConfig:
    """With as many checkpoints kept as come in two intervals: another trial may begin from one."""
    output = config.output
    each = -(-budget.interval // output.checkpoint_every) + 1
    return replace(config, output__keep_checkpoints=max(output.keep_checkpoints, 2 * each))
