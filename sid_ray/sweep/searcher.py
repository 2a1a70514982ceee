"""Ray Tune's searcher: the next point, with the name under which the trial is known."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from sid_ray.config.distill_config import DistillConfig
from sid_ray.sweep.arithmetic import may_begin
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.results import SweepOrder
from sid_ray.sweep.sampling import grid_points, optuna_point, random_point
from sid_ray.sweep.space import Space, Value
from sid_ray.sweep.trainable import FOLDER, SPEC, Spec
from sid_ray.sweep.trials import RUNNING, TrialRecord, spent_of


class LedgerSearch(Searcher):
    """Points out of the ledger: random, of a grid, or Optuna's. It has no state of its own.

    A trial is in the ledger before Tune hears of it. Those that an earlier driver began come first,
    under the same names, so that their runs go on.
    """

    def __init__(self, order: SweepOrder):
        super().__init__()
        self.order, self.folder = order, order.folder
        told = Ledger(self.folder).trials().values()
        self.begun = [spec for trial in told if (spec := again(order.space, trial))]
        self.handed: set[str] = set()

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        told = Ledger(self.folder).trials()
        running = sum(told[name].state == RUNNING for name in self.handed)
        if running >= self.order.concurrent:
            return None
        if self.begun:
            return self.hand_out(self.begun.pop(0))
        if len(told) >= count_of(self.order.space, self.order.base):
            return Searcher.FINISHED
        if not may_begin(self.order.space, spent_of(told.values())):
            return Searcher.FINISHED
        return self.hand_out(spec_of(self.order, list(told.values())))

    def hand_out(self, spec: Spec) -> dict[str, Any]:
        Ledger(self.folder).begin(spec.trial, spec.run, spec.point)
        self.handed.add(spec.trial)
        return {SPEC: spec._asdict(), FOLDER: str(self.folder)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass  # the ledger has it

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its ledger")


def again(space: Space, trial: TrialRecord) -> Spec | None:
    """What a trial goes on with in a new driver, None where it came to its end.

    One that failed is tried again. Where trials stop each by its own score, the last one is told
    again, as Tune may not have heard of the answer; a population would meet twice at one place.
    """
    if trial.state not in (RUNNING, "failed", "lost"):
        return None
    leg = trial.legs[-1]
    reported = leg.images_seen if space.scheduler == "pbt" else 0
    return Spec(trial.name, leg.run, leg.point, leg.from_run, leg.began_at, reported)


def count_of(space: Space, base: DistillConfig) -> int:
    """Trials of a sweep, where no budget ends it earlier."""
    return len(grid_points(space, base)) if space.searcher == "grid" else space.trials


def spec_of(order: SweepOrder, told: list[TrialRecord]) -> Spec:
    """The trial after those that were told: of the first number that none of them has."""
    space, base, names = order.space, order.base, {trial.name for trial in told}
    number = next(n for n in itertools.count() if name_of(n) not in names)
    point: dict[str, Value]
    if space.searcher == "grid":
        point = grid_points(space, base)[number]
    elif space.searcher == "optuna":
        point = optuna_point(space, base, told, number)
    else:
        point = random_point(space, base, space.seeds[0], number)
    return Spec(name_of(number), f"{order.name}-{name_of(number)}", point)


def name_of(number: int) -> str:
    return f"{number:03}"
