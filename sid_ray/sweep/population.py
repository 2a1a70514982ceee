"""PBT and PB2 of Ray Tune: the worst trials take over the best ones' state, with new settings.

An exploit is a line of the ledger before Tune hears of it. It gives the trial a run of its own, a
new leg, which begins from the donor's checkpoint: the settings are part of what a run is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.sweep.arithmetic import explored, whole_interval
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.notes import note_segment, watch_of
from sid_ray.sweep.sampling import bounds, from_bounds, point_of
from sid_ray.sweep.space import Range, Space, Value, config_of
from sid_ray.sweep.trainable import IMAGES, SPEC, Spec

TRIES = 20  # of a change that the config refuses


class Population(PopulationBasedTraining):
    """Both schedulers: all trials meet at each multiple of the interval.

    Args:
        folder: of the sweep.
        base: the recipe's config.
    """

    folder: str
    space: Space
    base: DistillConfig

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        note_segment(self.folder, self.space, trial, result)  # an exploit comes behind it
        return super().on_trial_result(tune_controller, trial, result)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Ray's, which would wait for ever for a trial that ended instead of coming to the others.

        It waits for the last one's result; one that fails or diverges has none.
        """
        chosen = super().choose_trial_to_run(tune_controller)
        live = tune_controller.get_live_trials()
        if chosen is None and live and all(t.status == TuneTrial.PAUSED for t in live):
            self.meet(tune_controller)
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def meet(self, tune_controller: Any) -> None:
        """What Ray does when the last result is in; nothing where they have just met."""
        self._next_perturbation_sync += self._perturbation_interval
        live = tune_controller.get_live_trials()
        states = [self._trial_state[trial] for trial in live]
        if all(state.last_perturbation_time == state.last_train_time for state in states):
            return
        lower, upper = self._quantiles()
        for trial in (*upper, *(t for t in live if t not in (*lower, *upper)), *lower):
            state = self._trial_state[trial]
            state.last_perturbation_time = state.last_train_time
            self._checkpoint_or_exploit(trial, tune_controller, upper, lower)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict, dict]:
        ledger = Ledger(Path(self.folder))
        told, mine, donors = ledger.trials(), Spec.of(trial), Spec.of(trial_to_clone)
        own, donor = told[mine.trial], told[donors.trial]
        run = f"{own.legs[0].run}-leg{len(own.legs) + 1}"
        point = self.new_point(trial, trial_to_clone, run)
        seen = int(self._trial_state[trial_to_clone].last_train_time)
        ledger.exploit(mine.trial, donor, seen, run, point)
        watch_of(self.folder).tell(f"{mine.trial}: goes on from {donor.name} at {seen:,} images")
        spec = Spec(mine.trial, run, point, donor.run, seen, seen)
        return {**trial.config, SPEC: spec._asdict(), **self.numbers(point)}, {}

    def new_point(self, trial: Any, trial_to_clone: Any, run: str) -> dict[str, Value]:
        raise NotImplementedError

    def numbers(self, point: Mapping[str, Value]) -> dict[str, float]:
        """What else Tune's config of a trial holds."""
        return {}

    def fits(self, point: Mapping[str, Value]) -> bool:
        try:
            config_of(self.space, self.base, point)
        except UserError:
            return False
        return True


class OwnPbt(Population):
    """PBT with changes that stay within the space."""

    def __init__(self, folder: str, space: Space, base: DistillConfig):
        self.folder, self.space, self.base = folder, space, base
        budget, metric = space.budget, space.metrics[0]
        super().__init__(
            time_attr=IMAGES,
            metric=metric.name,
            mode=metric.direction,
            perturbation_interval=whole_interval(budget, base.training.batch_size),
            burn_in_period=budget.grace,
            custom_explore_fn=unchanged,
            log_config=False,
            synch=True,
        )

    def new_point(self, trial: Any, trial_to_clone: Any, run: str) -> dict[str, Value]:
        """A change of the donor's point; the donor's own where the config refuses all."""
        donors = Spec.of(trial_to_clone).point
        generator = random.Random(f"{self.space.seeds[0]}/{run}")
        for _ in range(TRIES):
            point = explored(self.space, donors, generator)
            if self.fits(point):
                return point
        return dict(donors)


class OwnPb2(Population, PB2):
    """PB2, whose model sees the logarithm of what varies in it."""

    def __init__(self, folder: str, space: Space, base: DistillConfig):
        self.folder, self.space, self.base = folder, space, base
        budget, metric = space.budget, space.metrics[0]
        interval = whole_interval(budget, base.training.batch_size)
        PB2.__init__(
            self,
            time_attr=IMAGES,
            metric=metric.name,
            mode=metric.direction,
            perturbation_interval=interval,
            hyperparam_bounds=bounds(space),
            log_config=False,
            synch=True,
        )
        self._burn_in_period = budget.grace
        self._next_perturbation_sync = max(interval, budget.grace)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        trial.config.update(self.numbers(Spec.of(trial).point))
        super().on_trial_add(tune_controller, trial)

    def new_point(self, trial: Any, trial_to_clone: Any, run: str) -> dict[str, Value]:
        """What the model proposes; the donor's own point where the config refuses it."""
        proposed, _ = PB2._get_new_config(self, trial, trial_to_clone)
        numbers = from_bounds(self.space, {p.key: proposed[p.key] for p in self.space.parameters})
        point = point_of(self.space, self.base, numbers)
        return point if self.fits(point) else dict(Spec.of(trial_to_clone).point)

    def numbers(self, point: Mapping[str, Value]) -> dict[str, float]:
        found = {}
        for parameter in self.space.parameters:
            value, domain = float(point[parameter.name]), parameter.domain
            log = isinstance(domain, Range) and domain.log
            found[parameter.key] = math.log10(value) if log else value
        return found


def unchanged(config: dict) -> dict:
    """Ray wants a function where nothing is to be multiplied."""
    return config
