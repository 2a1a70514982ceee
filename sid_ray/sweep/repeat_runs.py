"""The runs of best trial and recipe with other seeds: what is left of them is run to its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

from sid_ray.config.distill_config import replace
from sid_ray.sweep.arithmetic import whole
from sid_ray.sweep.repeats import Repeat, add_repeat, ended_as
from sid_ray.sweep.results import SweepOrder
from sid_ray.sweep.segment import Trial, TrialFailedError
from sid_ray.sweep.space import config_of
from sid_ray.sweep.trainable import workers_for

LOOK_S = 1.0


@dataclass(frozen=True)
class Runner:
    """Runs what is left of them, ``order.concurrent`` at once, each on ``workers``.

    Args:
        address: of the Ray cluster. environment: see segment.Trial.
        tell: takes a line for each. show: called every second.
    """

    order: SweepOrder
    address: str
    workers: int
    environment: Mapping[str, str]
    tell: Callable[[str], None] = lambda text: None
    show: Callable[[], None] = lambda: None

    def run(self, repeats: Iterable[Repeat]) -> None:
        """Returns when all have ended. Raises TrialStoppedError where one was asked to stop."""
        left = [repeat for repeat in repeats if not repeat.ended]
        with ThreadPoolExecutor(max_workers=self.order.concurrent) as pool:
            waiting = {pool.submit(self.one, repeat) for repeat in left}
            try:
                while waiting:
                    ended, waiting = wait(waiting, LOOK_S, FIRST_COMPLETED)
                    for future in sorted(ended, key=lambda one: one.exception() is not None):
                        self.take(future.result())  # raises what stopped it, last
                    self.show()
            finally:
                for future in waiting:
                    future.cancel()

    def take(self, repeat: Repeat) -> None:
        add_repeat(self.order.folder, repeat)
        self.tell(f"{repeat.run}: {ended_as(self.order.space, repeat)}")

    def one(self, repeat: Repeat) -> Repeat:
        """One repeat's run, taken up where it was left."""
        order, space = self.order, self.order.space
        config = config_of(space, order.base, repeat.point)
        config = replace(config, training__seed=repeat.seed, output__run=repeat.run)
        trial = Trial(config, order.folder, self.address, self.environment)
        workers = workers_for(config.group_plan(1), self.workers)
        end = whole(space.budget.images, config.training.batch_size)
        try:
            seen = trial.advance(end, workers)
            scores = trial.scores(seen, [metric.name for metric in space.metrics], workers)
            return dataclasses.replace(repeat, images_seen=seen, scores=scores)
        except TrialFailedError as error:  # a run that gave up is one of them
            seen = trial.images_seen
            return dataclasses.replace(repeat, images_seen=seen, why=str(error))
