"""Points that Optuna proposes, out of the ledger alone.

The study is made anew for each point from what the trials before it scored. So nothing is pickled,
and a sweep whose driver was killed proposes what it would have proposed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sid_ray.config.distill_config import DistillConfig
from sid_ray.sweep.arithmetic import worst
from sid_ray.sweep.sampling import DefineByRun, keyed, recipe_point
from sid_ray.sweep.space import Choice, Domain, Space, Value
from sid_ray.sweep.trials import RUNNING, TrialRecord

LEAST_AT_RANDOM, MOST_AT_RANDOM = 4, 10  # trials before TPE has something to go by


def next_point(
    space: Space, base: DistillConfig, told: Sequence[TrialRecord], number: int
) -> dict[str, Value]:
    """The point of the trial with this number. The first is the recipe's own, where it can be."""
    import optuna

    if number == 0 and (own := recipe_point(space, base)):
        return own
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    at_random = min(MOST_AT_RANDOM, max(LEAST_AT_RANDOM, space.trials // 3))
    sampler = optuna.samplers.TPESampler(
        seed=random.Random(f"{space.seeds[0]}/{number}").getrandbits(32),
        n_startup_trials=at_random,
        constant_liar=True,  # running trials repel: several at once are not to be alike
    )
    study = optuna.create_study(
        directions=["minimize" if m.direction == "min" else "maximize" for m in space.metrics],
        sampler=sampler,
    )
    for trial in told:
        if trial.state not in ("failed", "lost"):
            study.add_trial(as_optuna(space, base, trial))
    return DefineByRun(space, base).point(study.ask())


def as_optuna(space: Space, base: DistillConfig, trial: TrialRecord) -> Any:
    """A trial as Optuna's.

    One that was stopped at a rung is a pruned one, which TPE ranks by how far it came, then by its
    score there: scores at different images do not compare. With several metrics Optuna has no
    pruning, and the last scores count.
    """
    import optuna

    states = optuna.trial.TrialState
    params = keyed(space, base, trial.first_point)
    domains = {p.key: distribution(p.domain) for p in space.parameters if p.key in params}
    state, values, between = states.RUNNING, None, {}
    scores = trial.scores
    if trial.state != RUNNING and len(space.metrics) > 1:
        state = states.COMPLETE
        values = [scores.get(metric.name, worst(metric)) for metric in space.metrics]
    elif trial.state != RUNNING:
        metric = space.metrics[0]
        if trial.state != "diverged":
            between = dict(trial.scored(metric.name))
        state = states.PRUNED
        if trial.state == "finished":
            state, values = states.COMPLETE, [scores.get(metric.name, worst(metric))]
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions=domains,
        values=values,
        intermediate_values=between,
    )


def distribution(domain: Domain) -> Any:
    """What sampling.suggest asks Optuna for."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    step = domain.step or None
    if domain.integer:
        low, high = round(domain.low), round(domain.high)
        return IntDistribution(low, high, log=domain.log, step=round(step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=step)
