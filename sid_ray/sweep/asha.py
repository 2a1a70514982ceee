"""Ray's ASHA whose rungs outlive the driver.

Tuner.restore (Ray 2.60, ray issue 30838) takes the scheduler as it was when the sweep began: empty
rungs, at which every trial is the first one and goes on. Here each decision is a line of a ledger
before Tune hears of it, and a scheduler that is taken up again reads them first. A trial that was
stopped, but whose end Tune had not noted yet, is stopped again when it tells its score again.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from sid_ray.storage.durable import append_line, read_values
from sid_ray.sweep.space import Budget, Metric
from sid_ray.sweep.trainable import Spec


class LastingAsha(AsyncHyperBandScheduler):
    """Successive halving with one bracket, in images seen.

    Args:
        ledger: file of lines [trial, images seen, score, decision], on the driver's disk.
        images_name: of images seen in a result.
    """

    def __init__(self, budget: Budget, metric: Metric, ledger: Path, images_name: str):
        super().__init__(
            time_attr=images_name,
            metric=metric.name,
            mode=metric.direction,
            max_t=budget.images,
            grace_period=budget.grace,
            reduction_factor=budget.reduction,
        )
        self.ledger = str(ledger)
        self.told: dict[tuple[str, int], str] = {}  # (trial, images seen) -> decision
        self.read = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if not self.read:
            self.read_ledger()
        super().on_trial_add(tune_controller, named(trial))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        super().on_trial_complete(tune_controller, named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        trial = named(trial)
        name, images_seen = trial.trial_id, result[self._time_attr]
        if (name, images_seen) in self.told:
            return self.told[name, images_seen]
        decision = super().on_trial_result(tune_controller, trial, result)
        self.told[name, images_seen] = decision
        line = [name, images_seen, result[self._metric], decision]
        append_line(Path(self.ledger), line)
        return decision

    def read_ledger(self) -> None:
        """Fills the rungs with what was told to an earlier driver; a cut last line is left out."""
        self.read = True
        for name, images_seen, score, decision in filter(None, read_values(Path(self.ledger))):
            self.told[name, images_seen] = decision
            if images_seen < self._max_t:  # at the end a trial stops without being held to others
                trial = SimpleNamespace(trial_id=name)
                self._brackets[0].on_result(trial, images_seen, self._metric_op * score)


def named(trial: Any) -> Any:
    """Stands for a trial, by the sweep's name of it: Tune gives one that it forgot a new id."""
    return SimpleNamespace(trial_id=Spec.of(trial).trial)
