"""The schedulers of a sweep, ASHA and PBT, through what Ray Tune documents of its schedulers alone.

ASHA is Ray's, with rungs that outlive the driver. Tuner.restore (Ray 2.60, ray issue 30838) takes
the scheduler as it was when the sweep began: empty rungs, at which every trial is the first one and
goes on. Here each decision is a line of a ledger before Tune hears of it, and a scheduler that is
taken up again reads them first. A trial that was stopped, but whose end Tune had not noted yet, is
stopped again when it tells its score again.

PBT is written here: the worst trials take over the best ones' state, with new settings. Of Ray's
nothing would be left but private members: an exploit is a line of the ledger, gives the trial a run
of its own, a new leg, which begins from the donor's checkpoint (the settings are part of what a run
is), and the trials that are left do not wait for one that ended.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.storage.durable import append_line, read_values
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.notes import watch_of
from sid_ray.sweep.sampling import draw_value
from sid_ray.sweep.space import Choice, Metric, Range, Space, SweepBudget, Value, config_of
from sid_ray.sweep.trainable import IMAGES, SPEC, Spec

FACTORS = (1.2, 0.8)  # PBT's changes of a number
RESAMPLE = 0.25  # share of PBT's changes that draw anew
QUANTILE = 0.25  # share of the population that is replaced, and that it is replaced by
TRIES = 20  # of a change that the config refuses

Waiting = dict[str, tuple[int, float]]  # trial -> images seen, score; more is better


class LastingAsha(AsyncHyperBandScheduler):
    """Successive halving with one bracket, in images seen.

    Args:
        ledger: file of lines [trial, images seen, score, decision], on the driver's disk.
    """

    def __init__(self, budget: SweepBudget, metric: Metric, ledger: Path):
        super().__init__(
            time_attr=IMAGES,
            metric=metric.name,
            mode=metric.direction,
            max_t=budget.images,
            grace_period=budget.grace,
            reduction_factor=budget.reduction,
        )
        self.ledger, self.images = str(ledger), budget.images
        self.told: dict[tuple[str, int], str] = {}  # (trial, images seen) -> decision
        self.read = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if not self.read:
            self.read_ledger()
        super().on_trial_add(tune_controller, trial_named(trial))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        super().on_trial_complete(tune_controller, trial_named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, trial_named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        trial = trial_named(trial)
        name, images_seen = trial.trial_id, result[IMAGES]
        if (name, images_seen) in self.told:
            return self.told[name, images_seen]
        decision = super().on_trial_result(tune_controller, trial, result)
        self.told[name, images_seen] = decision
        append_line(Path(self.ledger), [name, images_seen, result[self.metric], decision])
        return decision

    def read_ledger(self) -> None:
        """Fills the rungs with what was told to an earlier driver; a cut last line is left out."""
        self.read = True
        for name, images_seen, score, decision in filter(None, read_values(Path(self.ledger))):
            self.told[name, images_seen] = decision
            if images_seen < self.images:  # at the end a trial stops without being held to others
                trial = SimpleNamespace(trial_id=name)
                super().on_trial_add(None, trial)
                super().on_trial_result(None, trial, {IMAGES: images_seen, self.metric: score})


def trial_named(trial: Any) -> Any:
    """Stands for a trial, by the sweep's name of it: Tune gives one that it forgot a new id."""
    return SimpleNamespace(trial_id=Spec.of(trial).trial)


class Pbt(FIFOScheduler):
    """Population based training (Jaderberg and others 2017) with changes that stay in the space.

    A trial waits, paused, at each multiple of the interval from the budget's grace on. When all
    that live are there, the worst quarter goes on from the best quarter's checkpoints.

    Args:
        folder: of the sweep.
        base: the recipe's config.
    """

    def __init__(self, folder: str, space: Space, base: DistillConfig):
        super().__init__()
        self.folder, self.space, self.base = folder, space, base
        self.waiting: Waiting = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if result[IMAGES] < self.space.budget.grace:
            return self.CONTINUE
        metric = self.space.metrics[0]
        self.waiting[Spec.of(trial).trial] = result[IMAGES], metric.sign * result[metric.name]
        return self.PAUSE

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        live = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
        if live and all(self.waits(t) and t.status == TuneTrial.PAUSED for t in live):
            self.meet(live)
        able = (TuneTrial.PENDING, TuneTrial.PAUSED)
        return next((t for t in live if t.status in able and not self.waits(t)), None)

    def waits(self, trial: Any) -> bool:
        return Spec.of(trial).trial in self.waiting

    def meet(self, live: Sequence[Any]) -> None:
        """Lets all go on, the worst from the best; after a killed driver first who is behind."""
        trials = {Spec.of(trial).trial: trial for trial in live}
        waiting = {name: self.waiting[name] for name in trials}
        interval = self.space.budget.interval
        rounds = {name: images // interval for name, (images, _) in waiting.items()}
        if min(rounds.values()) < max(rounds.values()):
            self.waiting = {n: waiting[n] for n in trials if rounds[n] == max(rounds.values())}
            return
        self.waiting = {}
        worst, best = quantiles({name: reward for name, (_, reward) in waiting.items()})
        for name in worst:
            self.exploit(trials[name], [trials[donor] for donor in best], waiting)

    def exploit(self, trial: Any, donors: Sequence[Any], waiting: Waiting) -> None:
        """Writes down that a trial goes on from one of the donors, and makes its next leg ready."""
        ledger, mine = Ledger(Path(self.folder)), Spec.of(trial)
        told = ledger.trials()
        legs = told[mine.trial].legs
        run = f"{legs[0].run}-leg{len(legs) + 1}"
        theirs = Spec.of(random.Random(f"{self.space.seeds[0]}/{run}/donor").choice(donors))
        donor, seen = told[theirs.trial], waiting[theirs.trial][0]
        point = self.new_point(theirs.point, run)
        ledger.exploit(mine.trial, donor, seen, run, point)
        watch_of(self.folder).tell(f"{mine.trial}: goes on from {donor.name} at {seen:,} images")
        spec = Spec(mine.trial, run, point, donor.run, seen, seen)
        trial.set_config({**trial.config, SPEC: spec._asdict()})

    def new_point(self, donors: dict[str, Value], run: str) -> dict[str, Value]:
        """A change of the donor's point; the donor's own where the config refuses all."""
        generator = random.Random(f"{self.space.seeds[0]}/{run}")
        for _ in range(TRIES):
            point = explored(self.space, donors, generator)
            try:
                config_of(self.space, self.base, point)
            except UserError:
                continue
            return point
        return dict(donors)


class Quantiles(NamedTuple):
    """The worst trials, worst first, and the best, best last."""

    lower: list[str]
    upper: list[str]


def quantiles(rewards: Mapping[str, float], share: float = QUANTILE) -> Quantiles:
    """Which trials PBT replaces, and by which; more is better, NaN counts as no score."""
    ordered = sorted(
        (name for name, value in rewards.items() if not math.isnan(value)),
        key=lambda name: rewards[name],
    )
    if len(ordered) <= 1:
        return Quantiles([], [])
    count = math.ceil(len(ordered) * share)
    if count > len(ordered) / 2:
        count = len(ordered) // 2
    return Quantiles(ordered[:count], ordered[len(ordered) - count :])


def explored(
    space: Space, point: Mapping[str, Value], generator: random.Random, resample: float = RESAMPLE
) -> dict[str, Value]:
    """PBT's change of a donor's point: a neighbour of each choice, 0.8 or 1.2 times each number.

    Draws in Ray's order. Ray's leaves ranges; here values are clamped to them.
    """
    found: dict[str, Value] = {}
    for parameter in space.parameters:
        old, domain = point[parameter.name], parameter.domain
        anew = generator.random() < resample
        if isinstance(domain, Choice):
            found[parameter.name] = neighbour(domain, old, anew, generator)
        elif anew:
            found[parameter.name] = draw_value(domain, generator)
        else:
            found[parameter.name] = scaled(domain, old, generator.choice(FACTORS))
    return found


def neighbour(domain: Choice, old: Value, anew: bool, generator: random.Random) -> Value:
    if anew or old not in domain.values:
        return generator.choice(domain.values)
    place = domain.values.index(old) + generator.choice((-1, 1))
    return domain.values[min(max(place, 0), len(domain.values) - 1)]


def scaled(domain: Range, old: Value, factor: float) -> float:
    return domain.clamped(float(old) * factor)
