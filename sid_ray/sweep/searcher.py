"""Ray Tune's searcher: the next point, with the name under which the trial is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from sid_ray.config import DistillConfig
from sid_ray.sweep.arithmetic import may_begin
from sid_ray.sweep.ledger import RUNNING, Ledger, TrialHistory, spent_of
from sid_ray.sweep.notes import watch_of
from sid_ray.sweep.optuna_search import next_point
from sid_ray.sweep.order import Order
from sid_ray.sweep.sampling import grid_points, random_point
from sid_ray.sweep.space import Space, Value
from sid_ray.sweep.trainable import FOLDER, SPEC, Spec


class LedgerSearch(Searcher):
    """Points out of the ledger: random, of a grid, or Optuna's. It has no state of its own.

    A trial is in the ledger before Tune hears of it. One that Tune forgot, because the driver was
    killed before it had written its notes, is handed out again first: under the same name, so that
    its run goes on.
    """

    def __init__(self, order: Order):
        super().__init__()
        self.order, self.folder = order, str(order.folder)
        self.handed: set[str] = set()

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        ledger = Ledger(Path(self.folder))
        told, known = ledger.trials(), watch_of(self.folder).known | self.handed
        running = [trial for trial in told.values() if trial.state == RUNNING]
        if sum(trial.trial in known for trial in running) >= watch_of(self.folder).concurrent:
            return None
        for trial in running:
            if trial.trial not in known:
                return self.hand_out(Spec(trial.trial, trial.run, trial.point))
        if len(told) >= count_of(self.order.space, self.order.base):
            return Searcher.FINISHED
        if not may_begin(self.order.space, spent_of(told.values())):
            return Searcher.FINISHED
        spec = spec_of(self.order, list(told.values()))
        ledger.begin(spec.trial, spec.run, spec.point)
        return self.hand_out(spec)

    def hand_out(self, spec: Spec) -> dict[str, Any]:
        self.handed.add(spec.trial)
        return {SPEC: spec._asdict(), FOLDER: self.folder}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass  # the ledger has it

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        self.handed = set()


def count_of(space: Space, base: DistillConfig) -> int:
    """Trials of a sweep, where no budget ends it earlier."""
    return len(grid_points(space, base)) if space.searcher == "grid" else space.trials


def spec_of(order: Order, told: list[TrialHistory]) -> Spec:
    """The trial after those that were told."""
    space, base, number = order.space, order.base, len(told)
    point: dict[str, Value]
    if space.searcher == "grid":
        point = grid_points(space, base)[number]
    elif space.searcher == "optuna":
        point = next_point(space, base, told, number)
    else:
        point = random_point(space, base, space.seeds[0], number)
    return Spec(f"{number:03}", f"{order.name}-{number:03}", point)
