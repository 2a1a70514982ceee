"""A trial as Ray Tune sees it: a step is a segment, a checkpoint is a pointer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sid_ray.config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.groups import GroupPlan
from sid_ray.sweep.arithmetic import decision_points, segment_end, worst
from sid_ray.sweep.sampling import point_of
from sid_ray.sweep.segment import Trial, TrialFailedError
from sid_ray.sweep.space import Space, config_of
from sid_ray.sweep.space_file import parse_space

IMAGES, DIVERGED = "images_seen", "diverged"


TASK = "task.json"


@dataclass(frozen=True)
class SweepTask:
    """What all trials share, in the sweep's folder.

    A file, written anew at each start, because Tuner.restore gives trials the config that they had:
    what the new start brought would not reach them. (Not the cluster's address either: that is
    the one which the trial's actor is in.)

    Args:
        name: of the sweep; a trial's run is NAME-TRIAL.
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
        folder = Path(config["folder"])
        task = SweepTask.read(folder)
        self.space, base = task.parsed()
        drawn = config["point"]
        self.failure, self.reported = "", 0
        try:
            trial = config_of(self.space, base, point_of(self.space, base, drawn))
        except UserError as error:  # a combination that only the config can judge
            trial, self.failure = base, str(error)
        trial = replace(trial, output__run=f"{task.name}-{self.trial_id}")
        address = ray.get_runtime_context().gcs_address
        self.trial = Trial(trial, folder, address, task.environment)
        training = trial.training
        self.points = decision_points(self.space.budget, self.space.scheduler, training.batch_size)
        self.workers = workers_for(trial.group_plan(1), task.workers)

    def step(self) -> dict[str, Any]:
        """Trains to the next decision. A trial that cannot go on reports the worst score."""
        if self.failure:
            return self.given_up()
        target = segment_end(self.points, self.trial.images_seen, self.reported)
        try:
            seen = self.trial.advance(target, self.workers)
        except TrialFailedError as error:
            self.failure = str(error)
            return self.given_up()
        scores = self.trial.scores(seen)
        missing = [metric.name for metric in self.space.metrics if metric.name not in scores]
        if missing:
            self.failure = f"no score {missing[0]} at {seen:,} images, there are {sorted(scores)}"
            return self.given_up()
        self.reported = seen
        found = {metric.name: scores[metric.name] for metric in self.space.metrics}
        return {IMAGES: seen, **found, DIVERGED: False, "done": seen >= self.points[-1]}

    def given_up(self) -> dict[str, Any]:
        scores = {metric.name: worst(metric) for metric in self.space.metrics}
        seen = self.trial.images_seen
        return {IMAGES: seen, **scores, DIVERGED: True, "failure": self.failure, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """A pointer; the checkpoint itself is the run's."""
        return {"run": self.trial.name, IMAGES: self.reported}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        if checkpoint and checkpoint["run"] == self.trial.name:
            self.reported = checkpoint[IMAGES]

    def cleanup(self) -> None:
        self.trial.end()


def workers_for(plan: GroupPlan, most: int) -> int:
    """As many as may be used: a worker needs a group of its own."""
    return max(1, min(most, plan.num_groups))
